import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.iterated_attack import IteratedGradientAttack
from sfm_tf.attacks.momentum_iterative import MomentumIterativeMethod
from sfm_tf.attacks.projected_gradient import ProjectedGradientDescent
from sfm_tf.errors import SfmError

PIXEL = (1, 1, 1)
SHAPE = (3, 2, 1)
ATTACKS = [ProjectedGradientDescent, MomentumIterativeMethod, DiverseInputsMethod]
# Shape, number of classes, norm, and whether the attack is targeted: each compiles once.
SETTINGS = [
    ((1, 1, 1), 2, math.inf, False),
    ((2, 9, 3), 12, 2, True),
    ((9, 4, 1), 5, math.inf, True),
    ((3, 3, 3), 7, 2, False),
]


class Threshold(keras.Model):
    """Of one pixel: class 1 from 1/2 on, else class 0; counts the images it is shown."""

    def __init__(self):
        super().__init__()
        self.rows = tf.Variable(0)
        self.python_calls = 0

    def call(self, images):
        self.python_calls += 1
        self.rows.assign_add(tf.shape(images)[0])
        pixel = images[:, 0, 0, 0]
        return tf.stack([tf.zeros_like(pixel), pixel - 0.5], axis=1)


class Valley(keras.Model):
    """Of one pixel: falls until 0.7; only at its right end does class 1 win."""

    def call(self, images):
        pixel = images[:, 0, 0, 0]
        height = tf.where(pixel < 0.7, 0.7 - pixel, 10.0 * (pixel - 0.7))
        return tf.stack([tf.zeros_like(pixel), height - 1.5], axis=1)


class Looks(keras.Model):
    """Of one pixel: class 1 from 0.2, 0.3 or 0.4 on, in three looks side by side."""

    def call(self, images):
        thresholds = tf.gather([0.2, 0.3, 0.4], tf.range(tf.shape(images)[0]) % 3)
        pixel = images[:, 0, 0, 0]
        return tf.stack([tf.zeros_like(pixel), pixel - thresholds], axis=1)


class Bumpy(keras.Model):
    """Logits that rise and fall within an attack's reach."""

    def __init__(self, shape, class_count):
        super().__init__()
        size = (math.prod(shape), class_count)
        self.kernel = np.random.default_rng(0).normal(size=size).astype(np.float32)

    def call(self, images):
        return tf.reshape(tf.sin(25.0 * images), (-1, len(self.kernel))) @ self.kernel


def _attack(kind, model, shape=SHAPE, class_count=3, **options):
    classifier = wrap_classifier(model, class_count, shape, 64)
    settings = {"epsilon": 0.1, "step_size": 0.03, "iterations": 8, "batch_size": 16, "seed": 1}
    return kind(classifier, **{**settings, **options})


def _samples(model, count, shape=SHAPE):
    images = np.random.default_rng(1).uniform(0.0, 1.0, (count, *shape)).astype(np.float32)
    return images, np.asarray(model(images)).argmax(axis=1)


def _is_fooled(model, images, labels, targeted=False):
    return (np.asarray(model(images)).argmax(axis=1) == labels) == targeted


def _steps_from_the_threshold(steps, batch_size=16, **options):
    """Attacks pixels that cross 1/2 at the given numbers of steps of 0.01, of ten at most."""
    pixels = 0.5 - 0.01 * (np.array(steps) - 0.5)
    model = Threshold()
    attack = _attack(
        ProjectedGradientDescent,
        model,
        PIXEL,
        2,
        epsilon=0.3,
        step_size=0.01,
        iterations=10,
        batch_size=batch_size,
        **options,
    )
    images = pixels.astype(np.float32).reshape(-1, *PIXEL)
    outcome = attack.run(images, np.zeros(len(steps), int))
    # The check of the logits shows the model the first batch, too.
    return outcome, images, int(model.rows) - min(len(steps), batch_size), model.python_calls


SMALL_STEPS = {"epsilon": 0.02, "step_size": 0.004}
STEPS = [1, 20, 1, 3, 1, 6, 1, 3, 1, 20, 1, 3, 1, 6, 1, 3]


def test_an_image_stops_at_the_first_iterate_that_fools():
    outcome, images, _, _ = _steps_from_the_threshold(STEPS, stop_when_fooled=True)
    expected = np.minimum(STEPS, 10)
    assert outcome.iterations.tolist() == expected.tolist()
    np.testing.assert_allclose(outcome.images, images + 0.01 * expected[:, None, None, None], 1e-5)


def test_images_that_are_done_with_are_not_shown_to_the_model():
    """Iterates 0 and 1 of 16 images, 2 and 3 of 8, 4 to 6 of 4, 7 to 10 of 2."""
    _, _, rows, _ = _steps_from_the_threshold(STEPS, stop_when_fooled=True)
    assert rows == 2 * 16 + 2 * 8 + 3 * 4 + 4 * 2
    _, _, rows, _ = _steps_from_the_threshold(STEPS)
    assert rows == 11 * 16


def test_nothing_is_computed_once_all_images_fool_the_model():
    _, _, rows, _ = _steps_from_the_threshold([2] * 16, stop_when_fooled=True)
    assert rows == 3 * 16


def test_rows_that_fill_up_a_bucket_do_not_hold_it_open():
    """Of 16 images 5 stay, in a bucket of 8; when one more goes, the others fit one of 4."""
    steps = [1] * 11 + [3] + [20] * 4
    _, _, rows, _ = _steps_from_the_threshold(steps, stop_when_fooled=True)
    assert rows == 2 * 16 + 2 * 8 + 7 * 4


def test_at_most_four_sizes_are_compiled_and_by_default_one():
    calls = {}
    for stops in (False, True):
        *_, calls[stops] = _steps_from_the_threshold(
            [1] * 8 + [2] * 4 + [3] * 2 + [4, 5], stop_when_fooled=stops
        )
    # Once for the check of the logits; then, per size, in the loop and after it.
    assert calls == {False: 1 + 2, True: 1 + 4 * 2}


@pytest.mark.parametrize(
    ("kind", "norm", "targeted"),
    [
        (ProjectedGradientDescent, math.inf, False),
        (ProjectedGradientDescent, 2, True),
        (MomentumIterativeMethod, 2, False),
        (DiverseInputsMethod, math.inf, True),
    ],
)
def test_stopping_fools_as_many_as_the_best_of_all_iterates(kind, norm, targeted):
    model = Bumpy(SHAPE, 3)
    images, labels = _samples(model, 40)
    labels = (labels + targeted) % 3
    options = {"norm": norm, "targeted": targeted, "batch_size": 2, **SMALL_STEPS}
    full = _attack(kind, model, keep_best=True, **options).run(images, labels)
    expected = _is_fooled(model, full.images, labels, targeted)
    assert 0.2 < expected.mean() < 0.95
    for keep_best in (False, True):
        attack = _attack(kind, model, stop_when_fooled=True, keep_best=keep_best, **options)
        outcome = attack.run(images, labels)
        np.testing.assert_array_equal(_is_fooled(model, outcome.images, labels, targeted), expected)
        if keep_best:
            same = outcome.images[~expected], full.images[~expected]
            np.testing.assert_allclose(*same, atol=1e-6)


@pytest.mark.parametrize("kind", ATTACKS)
def test_images_do_not_depend_on_those_that_leave_the_batch(kind):
    model = Bumpy(SHAPE, 3)
    images, labels = _samples(model, 21)
    options = {"stop_when_fooled": True, "restarts": 2, **SMALL_STEPS}
    together = _attack(kind, model, batch_size=4, **options).run(images, labels)
    alone = _attack(kind, model, batch_size=1, **options).run(images, labels)
    np.testing.assert_allclose(together.images, alone.images, atol=1e-6)
    assert together.iterations.tolist() == alone.iterations.tolist()
    assert len(set(together.iterations.tolist())) > 3


@pytest.mark.parametrize("stop_when_fooled", [False, True])
def test_every_restart_has_a_start_of_its_own(stop_when_fooled):
    """From the image the pixel goes left; from a quarter of the ball right, where it fools."""
    images, labels = np.full((200, *PIXEL), 0.5, np.float32), np.zeros(200, int)
    options = {"epsilon": 0.4, "step_size": 0.1, "iterations": 9, "batch_size": 200}
    for restarts, share in ((1, 0.0), (2, 1 / 4), (5, 1 - (3 / 4) ** 4)):
        attack = _attack(
            ProjectedGradientDescent,
            Valley(),
            PIXEL,
            2,
            restarts=restarts,
            stop_when_fooled=stop_when_fooled,
            **options,
        )
        moved = attack.generate(images, labels).ravel()
        is_right = moved > 0.84
        deviation = math.sqrt(share * (1 - share) / 200)
        assert is_right.mean() == pytest.approx(share, abs=4 * deviation)
        np.testing.assert_allclose(moved[~is_right], 0.1, atol=1e-6)
        if not stop_when_fooled:
            np.testing.assert_allclose(moved[is_right], 0.9, atol=1e-6)


@pytest.mark.parametrize("keep_best", [False, True])
def test_more_restarts_are_never_less_damaging(keep_best):
    model = Bumpy(SHAPE, 3)
    images, labels = _samples(model, 40)
    attack = _attack(ProjectedGradientDescent, model, keep_best=keep_best, random_start=True)
    ranks = []
    for restarts in (1, 2, 4):
        attack.set_params(restarts=restarts)
        outcome = attack.run(images, labels)
        ranks.append(outcome.loss + 100 * _is_fooled(model, outcome.images, labels))
    assert (np.diff(ranks, axis=0) >= -1e-6).all()
    assert (ranks[2] > ranks[0] + 1e-3).mean() > 0.3


def test_restarts_leave_fooled_images_alone_where_that_is_allowed():
    """8 of 16 fool at once; the other 8 cannot, in 11 iterates of each of three runs."""
    steps = [1] * 8 + [40] * 8
    _, _, rows, _ = _steps_from_the_threshold(steps, stop_when_fooled=True, restarts=3)
    assert rows == 2 * 16 + 9 * 8 + 2 * 11 * 8
    _, _, rows, _ = _steps_from_the_threshold(steps, restarts=3)
    assert rows == 3 * 11 * 16


def test_an_image_has_to_fool_a_random_model_in_every_look():
    attack = _attack(
        ProjectedGradientDescent,
        Looks(),
        PIXEL,
        2,
        epsilon=0.5,
        step_size=0.08,
        gradient_samples=3,
        stop_when_fooled=True,
    )
    outcome = attack.run(np.full((4, *PIXEL), 0.1, np.float32), np.zeros(4, int))
    assert outcome.iterations.tolist() == [4] * 4


def test_numbers_change_without_compiling_anew():
    model = Threshold()
    attack = _attack(ProjectedGradientDescent, model, PIXEL, 2)
    images, labels = np.full((5, *PIXEL), 0.5, np.float32), np.zeros(5, int)
    attack.generate(images, labels)
    calls = model.python_calls
    for epsilon, step_size, iterations, restarts in ((0.2, 0.1, 9, 1), (0.05, 0.03, 4, 2)):
        attack.set_params(
            epsilon=epsilon, step_size=step_size, iterations=iterations, restarts=restarts
        )
        moved = attack.generate(images, labels)
        expected = 0.5 + min(epsilon, step_size * iterations)
        assert moved.max() == pytest.approx(expected, abs=1e-6)
    assert model.python_calls == calls


@functools.cache
def _bumpy_attack(kind, shape, class_count, norm, targeted):
    model = Bumpy(shape, class_count)
    return model, _attack(
        kind, model, shape, class_count, norm=norm, targeted=targeted, keep_best=True, batch_size=4
    )


@pytest.mark.parametrize("kind", ATTACKS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    setting=st.sampled_from(SETTINGS),
    epsilon=st.floats(0.001, 2.0),
    step_share=st.floats(0.01, 2.0),
    iterations=st.integers(1, 5),
    random_start=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_results_are_valid_repeatable_and_no_worse_after_more_steps(
    kind, setting, epsilon, step_share, iterations, random_start, seed
):
    shape, class_count, norm, targeted = setting
    model, attack = _bumpy_attack(kind, *setting)
    random = np.random.default_rng(seed)
    images = random.uniform(-0.2, 1.2, (4, *shape)).clip(0, 1).astype(np.float32)
    mask = random.integers(0, 2, images.shape)
    labels = random.integers(0, class_count, 4)
    attack.set_params(
        epsilon=epsilon, step_size=epsilon * step_share, random_start=random_start, seed=seed
    )
    ranks = []
    for count in (iterations, iterations + 3):
        attack.set_params(iterations=count)
        outcome = attack.run(images, labels, mask)
        moved = outcome.images
        np.testing.assert_array_equal(attack.run(images, labels, mask).images, moved)
        change = moved.astype(np.float64) - images
        sizes = np.linalg.norm(change.reshape(4, -1), ord=norm, axis=1)
        assert sizes.max() <= epsilon + (1e-6 if norm == math.inf else 1e-5)
        assert moved.min() >= 0
        assert moved.max() <= 1
        np.testing.assert_array_equal(moved[mask == 0], images[mask == 0])
        gain = -outcome.loss if targeted else outcome.loss
        ranks.append(gain + 1000 * _is_fooled(model, moved, labels, targeted))
    assert (ranks[1] >= ranks[0] - 1e-5).all()


@pytest.mark.parametrize("kind", [IteratedGradientAttack, *ATTACKS])
@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("restarts", 0, "an integer of at least 1"),
        ("stop_when_fooled", 1, "True or False"),
        ("gradient_samples", 2.0, "an integer of at least 1"),
    ],
)
def test_bad_options_are_refused(kind, option, value, expected):
    message = f"Invalid {option} {value} of {kind.__name__}; expected {expected}"
    with pytest.raises(SfmError, match=message):
        _attack(kind, Valley(), PIXEL, 2, **{option: value})


def test_the_size_and_the_number_of_steps_have_no_default():
    classifier = wrap_classifier(Valley(), 2, PIXEL, 4)
    with pytest.raises(SfmError, match="Missing step_size of IteratedGradientAttack; expected a"):
        IteratedGradientAttack(classifier, epsilon=0.1, iterations=3)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
