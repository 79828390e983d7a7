import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import ProjectedGradientDescent as ArtProjectedGradientDescent
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.fgsm import FastGradientMethod
from sfm_tf.attacks.mim import MomentumIterativeMethod
from sfm_tf.attacks.pgd import GradientAttack, ProjectedGradientDescent
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import wrap_classifier
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from tests.attacked_models import DIGIT_SHAPE, digit_model, digits

SHAPE = (3, 2, 1)
OPTIONS = {
    "epsilon": 0.1,
    "step_size": 0.03,
    "iterations": 5,
    "batch_size": 4,
    "seed": 1,
}


class WithMomentum(GradientAttack):
    """The momentum iterative method of Dong et al. 2018 as a subclass might write it."""

    def _initial_memory(self, images):
        return tf.zeros_like(images)

    def _search_direction(self, gradient, memory):
        size = tf.reduce_sum(tf.abs(gradient), axis=(1, 2, 3), keepdims=True)
        memory = memory + gradient / size
        return memory, memory


class OnTheMargin(GradientAttack):
    def _losses(self, logits, labels):
        return -tf.gather(logits, labels, batch_dims=1)


class Jittered(GradientAttack):
    """Sees the image darker or brighter; steps up where it saw it brighter, else down."""

    uniforms_per_view = 1

    def _views(self, images, uniforms, memory):
        return images + (uniforms - 0.5)[:, :, None, None]

    def _search_direction(self, gradient, memory):
        return gradient - Exponential.slope * np.exp(0.5), memory


class Exponential(keras.Model):
    """Its loss at label 0 is steeper the brighter the image: `slope` times exp(pixel)."""

    slope = 0.5e-3

    def call(self, images):
        logit = tf.reduce_sum(2 * self.slope * tf.exp(images), axis=(1, 2, 3))
        return tf.stack([tf.zeros_like(logit), logit], axis=1)


class LinearModel(keras.Model):
    """Logits of fixed weights; counts how often Python runs its forward pass."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.kernel = scale * np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
        self.calls = 0

    def call(self, images):
        self.calls += 1
        return tf.reshape(images, (-1, 6)) @ self.kernel


class Bumpy(keras.Model):
    """Logits that rise and fall within an attack's reach."""

    def __init__(self, shape=SHAPE, class_count=3):
        super().__init__()
        size = (math.prod(shape), class_count)
        self.kernel = np.random.default_rng(0).normal(size=size).astype(np.float32)

    def call(self, images):
        return tf.reshape(tf.sin(25.0 * images), (-1, len(self.kernel))) @ self.kernel


def _samples(count=10):
    random = np.random.default_rng(1)
    images = random.uniform(0.0, 1.0, (count, *SHAPE)).astype(np.float32)
    return images, random.integers(0, 3, count)


def _attack(kind=ProjectedGradientDescent, model=None, **options):
    classifier = wrap_classifier(model or LinearModel(), 3, SHAPE, 64)
    return kind(classifier, **{**OPTIONS, **options})


def _losses(model, images, labels):
    probabilities = softmax(np.asarray(model(images), np.float64), axis=1)
    return -np.log(probabilities[np.arange(len(labels)), labels])


def _momentum_by_hand(kernel, images, labels, epsilon, step_size, iterations):
    moved, momentum = images.astype(np.float64), 0.0
    for _ in range(iterations):
        error = softmax(moved.reshape(-1, 6) @ kernel, axis=1) - np.eye(3)[labels]
        gradient = (error @ kernel.T).reshape(images.shape)
        momentum = momentum + gradient / np.abs(gradient).sum(axis=(1, 2, 3), keepdims=True)
        moved = np.clip(moved + step_size * np.sign(momentum), 0, 1)
        moved = np.clip(moved, images - epsilon, images + epsilon)
    return moved


def test_other_numbers_do_not_compile_anew():
    images, labels = _samples()
    model = LinearModel()
    attack = _attack(model=model)
    attack.generate(images, labels)
    calls = model.calls
    for epsilon, iterations in ((0.2, 5), (0.05, 2), (0.3, 9)):
        attack.set_params(epsilon=epsilon, step_size=epsilon / 4, iterations=iterations)
        moved = attack.generate(images, labels)
        assert np.abs(moved - images).max() == pytest.approx(
            epsilon * min(1, iterations / 4), rel=1e-5
        )
    assert model.calls == calls


def test_targeted_attacks_raise_the_probability_of_the_target():
    images, labels = _samples()
    model = LinearModel()
    attack = _attack(model=model, targeted=True)
    outcome = attack.run(images, labels)
    after = _losses(model, outcome.images, labels)
    assert (after < _losses(model, images, labels)).all()
    np.testing.assert_allclose(outcome.loss, after, atol=1e-5)


def test_diagnostics_of_an_untargeted_attack():
    images, labels = _samples()
    model = LinearModel()
    outcome = _attack(model=model).run(images, labels)
    np.testing.assert_allclose(outcome.loss, _losses(model, outcome.images, labels), atol=1e-5)
    assert outcome.iterations.tolist() == [5] * 10
    assert not outcome.zero_gradient.any()


def test_a_confident_model_has_zero_gradients_and_stands_still():
    """The gradient of the cross-entropy underflows at a margin of over 104 in float32."""
    model = LinearModel(scale=1e4)
    images, _ = _samples()
    labels = np.asarray(model(images)).argmax(axis=1)
    margins = np.sort(np.asarray(model(images)), axis=1)
    assert (margins[:, -1] - margins[:, -2]).min() > 120
    outcome = _attack(model=model).run(images, labels)
    assert outcome.zero_gradient_share == 1.0
    np.testing.assert_array_equal(outcome.images, images)


def test_gradients_are_not_divided_by_the_batch():
    """exp(-85) is near the smallest normal float32: a 64th of it would be flushed to zero."""

    class Confident(keras.Model):
        def call(self, images):
            logit = tf.reduce_sum(images, axis=(1, 2, 3))
            return tf.stack([tf.fill(tf.shape(logit), 85.0), logit], axis=1)

    images = np.zeros((64, 1, 1, 1), np.float32)
    classifier = wrap_classifier(Confident(), 2, (1, 1, 1), 64)
    options = {**OPTIONS, "batch_size": 64}
    outcome = ProjectedGradientDescent(classifier, **options).run(images, np.zeros(64, int))
    assert outcome.zero_gradient_share == 0.0


def test_the_best_iterate_is_the_most_damaging_of_all():
    images, _ = _samples(60)
    model = Bumpy()
    labels = np.asarray(model(images)).argmax(axis=1)
    outcomes = {}
    for keep_best in (False, True):
        attack = _attack(model=model, keep_best=keep_best, iterations=8, batch_size=60)
        outcomes[keep_best] = attack.run(images, labels)
    prefixes, attack = [], _attack(model=model, batch_size=60)
    for iterations in range(1, 9):
        attack.set_params(iterations=iterations)
        prefixes.append(attack.generate(images, labels))
    fooled = np.array([np.asarray(model(moved)).argmax(axis=1) != labels for moved in prefixes])
    losses = np.array([_losses(model, moved, labels) for moved in prefixes])
    best = np.where(fooled, losses + 1e3, losses).argmax(axis=0)
    assert (best < 7).any()
    assert (best == 7).any()
    assert outcomes[True].iterations.tolist() == (best + 1).tolist()
    expected = np.array(prefixes)[best, np.arange(60)]
    np.testing.assert_allclose(outcomes[True].images, expected, atol=1e-6)
    np.testing.assert_allclose(outcomes[False].images, prefixes[-1], atol=1e-6)


def test_an_iterate_that_fools_is_better_than_one_of_higher_loss():
    class Detour(keras.Model):
        """Class 1 wins at 0.1; at 0.2 class 0 wins again, with less of the probability."""

        def call(self, images):
            pixel = tf.reduce_sum(images, axis=(1, 2, 3))
            beyond = tf.nn.relu(pixel - 0.11)
            rivals = [-1.0 + 11.0 * pixel - 13.9 * beyond, -10.0 + 110.6 * beyond]
            return tf.stack([tf.zeros_like(pixel), *rivals], axis=1)

    model, images, labels = Detour(), np.zeros((1, 1, 1, 1), np.float32), np.array([0])
    expected = {False: 0.2, True: 0.1}
    for keep_best, pixel in expected.items():
        attack = ProjectedGradientDescent(
            wrap_classifier(model, 3, (1, 1, 1), 4),
            epsilon=0.2,
            step_size=0.1,
            iterations=2,
            keep_best=keep_best,
        )
        assert attack.generate(images, labels).item() == pytest.approx(pixel)
    fooling, higher = (np.full((1, 1, 1, 1), pixel, np.float32) for pixel in (0.1, 0.2))
    assert np.argmax(model(fooling)) == 1
    assert np.argmax(model(higher)) == 0
    assert _losses(model, higher, labels) > _losses(model, fooling, labels)


def test_a_subclass_can_carry_momentum():
    images, labels = _samples()
    model = LinearModel()
    moved = _attack(WithMomentum, model).generate(images, labels)
    expected = _momentum_by_hand(model.kernel, images, labels, 0.1, 0.03, 5)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_several_samples_give_the_mean_of_their_gradients():
    """A model that draws anew for each image: here, one of three kernels by its position."""

    class Alternating(keras.Model):
        kernels = np.random.default_rng(3).normal(size=(3, 6, 3)).astype(np.float32)
        shapes = []

        def call(self, images):
            self.shapes.append(images.shape)
            kernels = tf.gather(self.kernels, tf.range(tf.shape(images)[0]) % 3)
            return tf.einsum("bi,bij->bj", tf.reshape(images, (-1, 6)), kernels)

    images, _ = _samples(8)
    images, labels = 0.4 * images + 0.3, np.arange(8) % 3
    model = Alternating()
    options = {"norm": 2, "gradient_samples": 3, "step_size": 0.1, "iterations": 1}
    attack = _attack(model=model, **options)
    outcome = attack.run(images, labels)
    gradient = 0.0
    for kernel in model.kernels:
        error = softmax(images.reshape(8, 6) @ kernel, axis=1) - np.eye(3)[labels]
        gradient = gradient + error @ kernel.T
    expected = 0.1 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose(outcome.images - images, expected.reshape(images.shape), atol=1e-6)
    logits = outcome.images.reshape(8, 6) @ model.kernels
    losses = -np.log(softmax(logits, axis=2))[:, np.arange(8), labels]
    np.testing.assert_allclose(outcome.loss, losses.mean(axis=0), atol=1e-5)
    assert (12, *SHAPE) in model.shapes


def _steps_up(seed, batch_size, steps):
    images = np.full((60, 1, 1, 1), 0.5, np.float32)
    classifier = wrap_classifier(Exponential(), 2, (1, 1, 1), 64)
    options = {"seed": seed, "batch_size": batch_size, "step_size": 1e-4, "iterations": steps}
    attack = Jittered(classifier, **{**OPTIONS, **options})
    moved = attack.generate(images, np.zeros(60, int)).ravel()
    return np.round((moved - 0.5) / 1e-4).astype(int)


def test_views_differ_from_image_to_image_and_from_step_to_step():
    first = _steps_up(seed=1, batch_size=60, steps=1)
    assert set(first) == {-1, 1}
    assert abs(first.sum()) < 32
    total = _steps_up(seed=1, batch_size=60, steps=7)
    # Of seven fair steps up or down, a sum of 7 or -7 has a probability of 1/64.
    assert {-3, -1, 1, 3} <= set(total) <= set(range(-7, 8, 2))
    assert np.mean(np.abs(total) == 7) < 0.1


def test_views_follow_the_seed_and_not_the_batch_size():
    expected = _steps_up(seed=1, batch_size=60, steps=7)
    assert _steps_up(seed=1, batch_size=7, steps=7).tolist() == expected.tolist()
    assert _steps_up(seed=2, batch_size=60, steps=7).tolist() != expected.tolist()


def test_the_stable_loss_moves_confident_predictions_in_the_right_direction():
    model = LinearModel(scale=100.0)
    images = _samples(40)[0] * 0.4 + 0.3
    labels = np.asarray(model(images)).argmax(axis=1)
    logits = np.sort(np.asarray(model(images)), axis=1)
    margins = logits[:, 2] - logits[:, 1]
    confident = (margins > 18) & (margins < 80)
    assert confident.sum() > 5
    slope = np.asarray(softmax(np.asarray(model(images), np.float64), axis=1))
    slope[np.arange(40), labels] = 0
    slope[np.arange(40), labels] = -slope.sum(axis=1)
    expected = images + 0.1 * np.sign((slope @ model.kernel.T).reshape(images.shape))
    wrong = {}
    attack = _attack(model=model, step_size=0.1, iterations=1)
    for loss in ("cross_entropy", "stable_cross_entropy"):
        attack.set_params(loss=loss)
        wrong[loss] = np.abs(attack.generate(images, labels) - expected)[confident] > 1e-3
    assert not wrong["stable_cross_entropy"].any()
    assert wrong["cross_entropy"].mean() > 0.05


def test_a_subclass_can_have_another_loss():
    images, labels = _samples()
    model = LinearModel()
    outcome = _attack(OnTheMargin, model).run(images, labels)
    slope = -np.sign(model.kernel[:, labels].T).reshape(images.shape)
    np.testing.assert_allclose(outcome.images, np.clip(images + 0.1 * slope, 0, 1), atol=1e-6)
    logits = np.asarray(model(outcome.images))
    np.testing.assert_allclose(outcome.loss, -logits[np.arange(10), labels], atol=1e-5)


def test_a_model_without_gradient_is_refused():
    class Rounding(LinearModel):
        def call(self, images):
            return super().call(tf.round(images))

    with pytest.raises(SfmError, match="no gradient with respect to its input"):
        _attack(model=Rounding()).generate(*_samples())


def test_gradients_that_are_not_numbers_count_as_zero():
    class Undefined(LinearModel):
        def call(self, images):
            # The square root has an infinite slope at 0, times 0 by the chain rule: NaN.
            return super().call(images + tf.sqrt(0.0 * images))

    images, labels = _samples()
    outcome = _attack(model=Undefined()).run(images, labels)
    assert outcome.zero_gradient_share == 1.0
    np.testing.assert_array_equal(outcome.images, images)


PIXEL = (1, 1, 1)
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


class Sampled(keras.Model):
    """Of one pixel: class 1 from 0.2, 0.3 or 0.4 on, in three samples side by side."""

    def call(self, images):
        thresholds = tf.gather([0.2, 0.3, 0.4], tf.range(tf.shape(images)[0]) % 3)
        pixel = images[:, 0, 0, 0]
        return tf.stack([tf.zeros_like(pixel), pixel - thresholds], axis=1)


def _loop_attack(kind, model, shape=SHAPE, class_count=3, **options):
    classifier = wrap_classifier(model, class_count, shape, 64)
    settings = {"epsilon": 0.1, "step_size": 0.03, "iterations": 8, "batch_size": 16, "seed": 1}
    return kind(classifier, **{**settings, **options})


def _loop_samples(model, count, shape=SHAPE):
    images = np.random.default_rng(1).uniform(0.0, 1.0, (count, *shape)).astype(np.float32)
    return images, np.asarray(model(images)).argmax(axis=1)


def _is_fooled(model, images, labels, targeted=False):
    return (np.asarray(model(images)).argmax(axis=1) == labels) == targeted


def _steps_from_the_threshold(steps, batch_size=16, **options):
    """Attacks pixels that cross 1/2 at the given numbers of steps of 0.01, of ten at most."""
    pixels = 0.5 - 0.01 * (np.array(steps) - 0.5)
    model = Threshold()
    attack = _loop_attack(
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
        (DiverseInputsMethod, math.inf, True),
    ],
)
def test_stopping_fools_as_many_as_the_best_of_all_iterates(kind, norm, targeted):
    model = Bumpy()
    images, labels = _loop_samples(model, 40)
    labels = (labels + targeted) % 3
    options = {"norm": norm, "targeted": targeted, "batch_size": 2, **SMALL_STEPS}
    full = _loop_attack(kind, model, keep_best=True, **options).run(images, labels)
    expected = _is_fooled(model, full.images, labels, targeted)
    assert 0.2 < expected.mean() < 0.95
    for keep_best in (False, True):
        attack = _loop_attack(kind, model, stop_when_fooled=True, keep_best=keep_best, **options)
        outcome = attack.run(images, labels)
        np.testing.assert_array_equal(_is_fooled(model, outcome.images, labels, targeted), expected)
        if keep_best:
            same = outcome.images[~expected], full.images[~expected]
            np.testing.assert_allclose(*same, atol=1e-6)


@pytest.mark.parametrize("kind", [MomentumIterativeMethod, DiverseInputsMethod])
def test_images_do_not_depend_on_those_that_leave_the_batch(kind):
    model = Bumpy()
    images, labels = _loop_samples(model, 21)
    options = {"stop_when_fooled": True, "restarts": 2, **SMALL_STEPS}
    together = _loop_attack(kind, model, batch_size=4, **options).run(images, labels)
    alone = _loop_attack(kind, model, batch_size=1, **options).run(images, labels)
    np.testing.assert_allclose(together.images, alone.images, atol=1e-6)
    assert together.iterations.tolist() == alone.iterations.tolist()
    assert len(set(together.iterations.tolist())) > 3


@pytest.mark.parametrize("stop_when_fooled", [False, True])
def test_every_restart_has_a_start_of_its_own(stop_when_fooled):
    """From the image the pixel goes left; from a quarter of the ball right, where it fools."""
    images, labels = np.full((200, *PIXEL), 0.5, np.float32), np.zeros(200, int)
    options = {"epsilon": 0.4, "step_size": 0.1, "iterations": 9, "batch_size": 200}
    for restarts, share in ((1, 0.0), (2, 1 / 4), (5, 1 - (3 / 4) ** 4)):
        attack = _loop_attack(
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
    model = Bumpy()
    images, labels = _loop_samples(model, 40)
    attack = _loop_attack(ProjectedGradientDescent, model, keep_best=keep_best, random_start=True)
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


def test_an_image_has_to_fool_a_random_model_in_every_sample():
    attack = _loop_attack(
        ProjectedGradientDescent,
        Sampled(),
        PIXEL,
        2,
        epsilon=0.5,
        step_size=0.08,
        gradient_samples=3,
        stop_when_fooled=True,
    )
    outcome = attack.run(np.full((4, *PIXEL), 0.1, np.float32), np.zeros(4, int))
    assert outcome.iterations.tolist() == [4] * 4


@functools.cache
def _bumpy_attack(shape, class_count, norm, targeted):
    model = Bumpy(shape, class_count)
    options = {"norm": norm, "targeted": targeted, "keep_best": True, "batch_size": 4}
    return model, _loop_attack(ProjectedGradientDescent, model, shape, class_count, **options)


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
    setting, epsilon, step_share, iterations, random_start, seed
):
    shape, class_count, norm, targeted = setting
    model, attack = _bumpy_attack(*setting)
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


def _convolutional_classifier():
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(DIGIT_SHAPE),
        keras.layers.Conv2D(6, 3, activation="relu"),
        keras.layers.Conv2D(6, 3, strides=2, activation="tanh"),
        keras.layers.Flatten(),
        keras.layers.Dense(5),
    ]
    return wrap_classifier(keras.Sequential(layers), 5, DIGIT_SHAPE, 16)


def _image_samples(class_count, low=0.0, high=1.0):
    random = np.random.default_rng(1)
    images = random.uniform(low, high, (20, *DIGIT_SHAPE)).astype(np.float32)
    return images, random.integers(0, class_count, 20)


@pytest.fixture(scope="module", name="digits")
def _digits():
    return digits()


@pytest.fixture(scope="module", name="trained_model")
def _trained_model():
    return digit_model()


def test_a_batch_attacked_in_two_parts_is_that_attacked_whole(monkeypatch, trained_model, digits):
    classifier = wrap_classifier(trained_model, 10, DIGIT_SHAPE, 64)
    images, labels = digits[0][:64], digits[1][:64]
    options = {"epsilon": 0.1, "step_size": 0.02, "iterations": 5, "random_start": True}
    outcomes = []
    for parts in (1, 2):
        monkeypatch.setattr(ProjectedGradientDescent, "_parallel_parts", parts)
        attack = ProjectedGradientDescent(classifier, **options, batch_size=64)
        outcomes.append(attack.run(images, labels))
    # A product of half the rows may add up in another order.
    np.testing.assert_allclose(outcomes[1].images, outcomes[0].images, atol=1e-6)
    np.testing.assert_allclose(outcomes[1].loss, outcomes[0].loss, rtol=1e-4)
    np.testing.assert_array_equal(outcomes[1].iterations, outcomes[0].iterations)


def _accuracy(model, images, labels):
    return np.mean(np.asarray(model(images)).argmax(axis=1) == labels)


@pytest.mark.parametrize(
    ("norm", "epsilon", "step_size", "targeted"),
    [(math.inf, 0.05, 0.01, False), (math.inf, 0.05, 0.01, True), (2, 0.5, 0.1, True)],
)
def test_makes_the_images_that_art_makes(norm, epsilon, step_size, targeted):
    classifier, (images, labels) = _convolutional_classifier(), _image_samples(5)
    reference = ArtProjectedGradientDescent(
        classifier,
        norm=norm,
        eps=epsilon,
        eps_step=step_size,
        max_iter=10,
        targeted=targeted,
        batch_size=16,
        verbose=False,
    )
    attack = ProjectedGradientDescent(
        classifier,
        norm=norm,
        epsilon=epsilon,
        step_size=step_size,
        iterations=10,
        targeted=targeted,
        batch_size=16,
    )
    expected = reference.generate(images, labels)
    assert np.abs(expected - images).max() > 0.04
    np.testing.assert_allclose(attack.generate(images, labels), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "targeted", "random_start", "keep_best"),
    [
        (math.inf, False, True, True),
        (math.inf, True, True, False),
        (2, False, False, True),
    ],
)
def test_finds_the_worst_perturbation_of_a_linear_model(norm, targeted, random_start, keep_best):
    kernel = np.random.default_rng(0).normal(scale=0.2, size=(64, 2)).astype(np.float32)
    layers = [
        keras.Input(DIGIT_SHAPE),
        keras.layers.Flatten(),
        keras.layers.Dense(2, use_bias=False),
    ]
    model = keras.Sequential(layers)
    model.set_weights([kernel])
    images, labels = _image_samples(2, 0.3, 0.7)
    slope = (kernel[:, 1 - labels] - kernel[:, labels]).T.reshape(images.shape)
    slope = -slope if targeted else slope
    lengths = np.linalg.norm(slope.reshape(20, -1), axis=1)[:, None, None, None]
    worst = {math.inf: np.sign(slope), 2: slope / lengths}[norm]
    attack = ProjectedGradientDescent(
        wrap_classifier(model, 2, DIGIT_SHAPE, 16),
        norm=norm,
        epsilon=0.2,
        step_size=0.05,
        iterations=9,
        targeted=targeted,
        random_start=random_start,
        keep_best=keep_best,
    )
    np.testing.assert_allclose(attack.generate(images, labels), images + 0.2 * worst, atol=1e-6)


def test_accuracy_falls_as_the_radius_grows(trained_model, digits):
    images, labels = digits[0][:200], digits[1][:200]
    classifier = wrap_classifier(trained_model, 10, DIGIT_SHAPE, 100)
    attack = ProjectedGradientDescent(classifier, epsilon=0.1, step_size=0.02, iterations=30)
    accuracies = [_accuracy(trained_model, images, labels)]
    for epsilon in (0.03, 0.06, 0.12, 0.24, 0.48):
        attack.set_params(epsilon=epsilon)
        accuracies.append(_accuracy(trained_model, attack.generate(images, labels), labels))
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.85
    assert accuracies[-1] == 0.0


def test_many_small_steps_fool_no_less_than_one_large_step(trained_model, digits):
    images, labels = digits[0][:200], digits[1][:200]
    classifier = wrap_classifier(trained_model, 10, DIGIT_SHAPE, 100)
    one = FastGradientMethod(classifier, epsilon=0.1).generate(images, labels)
    many = ProjectedGradientDescent(
        classifier, epsilon=0.1, step_size=0.02, iterations=20, keep_best=True
    ).generate(images, labels)
    assert _accuracy(trained_model, many, labels) <= _accuracy(trained_model, one, labels)


@pytest.mark.parametrize("surrogate", ["identity", "smooth"])
def test_a_defence_by_bit_depth_alone_falls(trained_model, digits, surrogate):
    """A defence known to be broken validates the attack (Athalye et al. 2018)."""
    images, labels = digits[0][:100], digits[1][:100]
    preprocessor = parse_preprocessor("bit_depth_4", surrogate)
    defended = DefendedModel(trained_model, None, preprocessor)
    assert _accuracy(defended, images, labels) > 0.85
    attack = ProjectedGradientDescent(
        wrap_classifier(defended, 10, DIGIT_SHAPE, 100),
        epsilon=0.25,
        step_size=0.03,
        iterations=30,
        random_start=True,
        keep_best=True,
    )
    assert _accuracy(defended, attack.generate(images, labels), labels) < 0.02
