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
from sfm_tf.attacks.pgd import GradientAttack, ProjectedGradientDescent
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import wrap_classifier
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from tests.attacked_models import (
    DIGIT_SHAPE,
    Linear,
    Wavy,
    accuracy,
    convolutional_classifier,
    cross_entropy,
    digit_model,
    digits,
    norms,
    predictions,
    samples,
)

SHAPE = (3, 2, 1)
PIXEL = (1, 1, 1)
# Shape, number of classes, norm, and whether the attack is targeted: each compiles once.
SETTINGS = [((2, 9, 3), 12, 2, True), ((9, 4, 1), 5, math.inf, False)]


class OnTheMargin(GradientAttack):
    def _losses(self, logits, labels):
        return -tf.gather(logits, labels, batch_dims=1)


def _samples(count=10):
    return samples(3, count=count, shape=SHAPE)


def _attack(model, kind=ProjectedGradientDescent, shape=SHAPE, class_count=3, **options):
    classifier = wrap_classifier(model, class_count, shape, 64)
    settings = {"epsilon": 0.1, "step_size": 0.03, "iterations": 8, "batch_size": 16, "seed": 1}
    return kind(classifier, **{**settings, **options})


def _is_fooled(model, images, labels, targeted=False):
    return (predictions(model, images) == labels) == targeted


def test_a_confident_model_has_zero_gradients_and_stands_still():
    """The gradient of the cross-entropy underflows at a margin of over 104 in float32."""
    model = Linear(3, 6, scale=1e4)
    images, _ = _samples()
    labels = predictions(model, images)
    margins = np.sort(np.asarray(model(images)), axis=1)
    assert (margins[:, -1] - margins[:, -2]).min() > 120
    outcome = _attack(model).run(images, labels)
    assert outcome.zero_gradient_share == 1.0
    np.testing.assert_array_equal(outcome.images, images)


def test_gradients_are_not_divided_by_the_batch():
    """exp(-85) is near the smallest normal float32: a 64th of it would be flushed to zero."""

    class Confident(keras.Model):
        def call(self, images):
            logit = tf.reduce_sum(images, axis=(1, 2, 3))
            return tf.stack([tf.fill(tf.shape(logit), 85.0), logit], axis=1)

    images = np.zeros((64, *PIXEL), np.float32)
    attack = _attack(Confident(), shape=PIXEL, class_count=2, batch_size=64)
    assert attack.run(images, np.zeros(64, int)).zero_gradient_share == 0.0


def test_the_best_iterate_is_the_most_damaging_of_all():
    images, _ = _samples(60)
    model, prefixes = Wavy(3, 6), []
    labels = predictions(model, images)
    attack = _attack(model, batch_size=60)
    for iterations in range(1, 9):
        attack.set_params(iterations=iterations)
        prefixes.append(attack.generate(images, labels))
    fooled = np.array([_is_fooled(model, moved, labels) for moved in prefixes])
    losses = np.array([cross_entropy(model, moved, labels) for moved in prefixes])
    best = np.where(fooled, losses + 1e3, losses).argmax(axis=0)
    assert (best < 7).any()
    assert (best == 7).any()
    attack.set_params(keep_best=True)
    outcome = attack.run(images, labels)
    assert outcome.iterations.tolist() == (best + 1).tolist()
    expected = np.array(prefixes)[best, np.arange(60)]
    np.testing.assert_allclose(outcome.images, expected, atol=1e-6)


def test_an_iterate_that_fools_is_better_than_one_of_higher_loss():
    class Detour(keras.Model):
        """Class 1 wins at 0.1; at 0.2 class 0 wins again, with less of the probability."""

        def call(self, images):
            pixel = tf.reduce_sum(images, axis=(1, 2, 3))
            beyond = tf.nn.relu(pixel - 0.11)
            rivals = [-1.0 + 11.0 * pixel - 13.9 * beyond, -10.0 + 110.6 * beyond]
            return tf.stack([tf.zeros_like(pixel), *rivals], axis=1)

    model, images, label = Detour(), np.zeros((1, *PIXEL), np.float32), np.array([0])
    options = {"epsilon": 0.2, "step_size": 0.1, "iterations": 2, "keep_best": True}
    fooling = _attack(model, shape=PIXEL, **options).generate(images, label)
    higher = images + 0.2
    assert fooling.item() == pytest.approx(0.1)
    assert predictions(model, np.concatenate([fooling, higher])).tolist() == [1, 0]
    assert cross_entropy(model, higher, label) > cross_entropy(model, fooling, label)


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
    outcome = _attack(model, **options, batch_size=4).run(images, labels)
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


def test_the_stable_loss_moves_confident_predictions_in_the_right_direction():
    model = Linear(3, 6, scale=100.0)
    images = _samples(40)[0] * 0.4 + 0.3
    labels = predictions(model, images)
    logits = np.sort(np.asarray(model(images)), axis=1)
    margins = logits[:, 2] - logits[:, 1]
    confident = (margins > 18) & (margins < 80)
    assert confident.sum() > 5
    slope = np.asarray(softmax(np.asarray(model(images), np.float64), axis=1))
    slope[np.arange(40), labels] = 0
    slope[np.arange(40), labels] = -slope.sum(axis=1)
    expected = images + 0.1 * np.sign((slope @ model.kernel.T).reshape(images.shape))
    wrong = {}
    attack = _attack(model, step_size=0.1, iterations=1)
    for loss in ("cross_entropy", "stable_cross_entropy"):
        attack.set_params(loss=loss)
        wrong[loss] = np.abs(attack.generate(images, labels) - expected)[confident] > 1e-3
    assert not wrong["stable_cross_entropy"].any()
    assert wrong["cross_entropy"].mean() > 0.05


def test_a_subclass_can_have_another_loss():
    images, labels = _samples()
    model = Linear(3, 6)
    outcome = _attack(model, OnTheMargin).run(images, labels)
    slope = -np.sign(model.kernel[:, labels].T).reshape(images.shape)
    np.testing.assert_allclose(outcome.images, np.clip(images + 0.1 * slope, 0, 1), atol=1e-6)
    logits = np.asarray(model(outcome.images))
    np.testing.assert_allclose(outcome.loss, -logits[np.arange(10), labels], atol=1e-5)


def test_a_model_without_gradient_is_refused():
    class Rounding(Linear):
        def call(self, images):
            return super().call(tf.round(images))

    with pytest.raises(SfmError, match="no gradient with respect to its input"):
        _attack(Rounding(3, 6)).generate(*_samples())


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


SMALL_STEPS = {"epsilon": 0.02, "step_size": 0.004}
STEPS = [1, 20, 1, 3, 1, 6, 1, 3, 1, 20, 1, 3, 1, 6, 1, 3]


FOUR_SIZES = [1] * 8 + [2] * 4 + [3] * 2 + [4, 5]


def _at_steps_from_the_threshold(steps):
    """Returns pixels that cross 1/2 at the given numbers of steps of 0.01."""
    pixels = 0.5 - 0.01 * (np.array(steps) - 0.5)
    return pixels.astype(np.float32).reshape(-1, *PIXEL)


@functools.cache
def _threshold_attack(stop_when_fooled):
    """Returns the model, its attack of ten steps and how often Python ran the model for it."""
    model = Threshold()
    options = {"epsilon": 0.3, "step_size": 0.01, "iterations": 10}
    attack = _attack(
        model, shape=PIXEL, class_count=2, **options, stop_when_fooled=stop_when_fooled
    )
    attack.run(_at_steps_from_the_threshold(FOUR_SIZES), np.zeros(16, int))
    return model, attack, model.python_calls


def _run_from_the_threshold(steps, stop_when_fooled=True, restarts=1):
    """Returns the images, the outcome and how many images the model was shown."""
    model, attack, _ = _threshold_attack(stop_when_fooled)
    images = _at_steps_from_the_threshold(steps)
    attack.set_params(restarts=restarts)
    model.rows.assign(0)
    return images, attack.run(images, np.zeros(len(steps), int)), int(model.rows)


def test_an_image_stops_at_the_first_iterate_that_fools():
    images, outcome, _ = _run_from_the_threshold(STEPS)
    expected = np.minimum(STEPS, 10)
    assert outcome.iterations.tolist() == expected.tolist()
    np.testing.assert_allclose(outcome.images, images + 0.01 * expected[:, None, None, None], 1e-5)


@pytest.mark.parametrize(
    ("steps", "options", "rows"),
    [
        # Iterates 0 and 1 of 16 images, 2 and 3 of 8, 4 to 6 of 4, 7 to 10 of 2.
        (STEPS, {}, 2 * 16 + 2 * 8 + 3 * 4 + 4 * 2),
        (STEPS, {"stop_when_fooled": False}, 11 * 16),
        ([2] * 16, {}, 3 * 16),
        # Of 16 images 5 stay, in a bucket of 8, which those that fill it up do not hold open:
        # when one more goes, the others fit one of 4.
        ([1] * 11 + [3] + [20] * 4, {}, 2 * 16 + 2 * 8 + 7 * 4),
        # 8 of 16 fool at once; the other 8 cannot, in 11 iterates of each of three runs.
        ([1] * 8 + [40] * 8, {"restarts": 3}, 2 * 16 + 9 * 8 + 2 * 11 * 8),
        ([1] * 8 + [40] * 8, {"restarts": 3, "stop_when_fooled": False}, 3 * 11 * 16),
    ],
    ids=["some", "never_stops", "all", "filled_up", "restarts", "restarts_never_stop"],
)
def test_images_that_are_done_with_are_not_shown_to_the_model(steps, options, rows):
    assert _run_from_the_threshold(steps, **options)[2] == rows


def test_at_most_four_sizes_are_compiled_and_by_default_one():
    # Once for the check of the logits; then, per size, in the loop and after it.
    assert _threshold_attack(False)[2] == 1 + 2
    assert _threshold_attack(True)[2] == 1 + 4 * 2


def test_stopping_fools_as_many_as_the_best_of_all_iterates():
    model = Wavy(3, 6)
    images, _ = _samples(40)
    labels = (predictions(model, images) + 1) % 3
    attack = _attack(
        model, DiverseInputsMethod, targeted=True, batch_size=2, keep_best=True, **SMALL_STEPS
    )
    full = attack.generate(images, labels)
    expected = _is_fooled(model, full, labels, targeted=True)
    assert 0.2 < expected.mean() < 0.95
    for keep_best in (False, True):
        attack.set_params(stop_when_fooled=True, keep_best=keep_best)
        moved = attack.generate(images, labels)
        np.testing.assert_array_equal(_is_fooled(model, moved, labels, targeted=True), expected)
    np.testing.assert_allclose(moved[~expected], full[~expected], atol=1e-6)


def test_images_do_not_depend_on_those_that_leave_the_batch():
    model = Wavy(3, 6)
    images, _ = _samples(21)
    labels = predictions(model, images)
    attack = _attack(model, DiverseInputsMethod, stop_when_fooled=True, restarts=2, **SMALL_STEPS)
    outcomes = []
    for batch_size in (4, 1):
        attack.set_params(batch_size=batch_size)
        outcomes.append(attack.run(images, labels))
    together, alone = outcomes
    np.testing.assert_allclose(together.images, alone.images, atol=1e-6)
    assert together.iterations.tolist() == alone.iterations.tolist()
    assert len(set(together.iterations.tolist())) > 3


@pytest.mark.parametrize("stop_when_fooled", [False, True])
def test_every_restart_has_a_start_of_its_own(stop_when_fooled):
    """From the image the pixel goes left; from a quarter of the ball right, where it fools."""
    images, labels = np.full((200, *PIXEL), 0.5, np.float32), np.zeros(200, int)
    options = {"epsilon": 0.4, "step_size": 0.1, "iterations": 9, "batch_size": 200}
    attack = _attack(
        Valley(), shape=PIXEL, class_count=2, stop_when_fooled=stop_when_fooled, **options
    )
    for restarts, share in ((1, 0.0), (2, 1 / 4), (5, 1 - (3 / 4) ** 4)):
        attack.set_params(restarts=restarts)
        moved = attack.generate(images, labels).ravel()
        is_right = moved > 0.84
        deviation = math.sqrt(share * (1 - share) / 200)
        assert is_right.mean() == pytest.approx(share, abs=4 * deviation)
        np.testing.assert_allclose(moved[~is_right], 0.1, atol=1e-6)
        if not stop_when_fooled:
            np.testing.assert_allclose(moved[is_right], 0.9, atol=1e-6)


@pytest.mark.parametrize("keep_best", [False, True])
def test_more_restarts_are_never_less_damaging(keep_best):
    model = Wavy(3, 6)
    images, _ = _samples(40)
    labels = predictions(model, images)
    attack = _attack(model, keep_best=keep_best, random_start=True)
    ranks = []
    for restarts in (1, 2, 4):
        attack.set_params(restarts=restarts)
        outcome = attack.run(images, labels)
        ranks.append(outcome.loss + 100 * _is_fooled(model, outcome.images, labels))
    assert (np.diff(ranks, axis=0) >= -1e-6).all()
    assert (ranks[2] > ranks[0] + 1e-3).mean() > 0.3


def test_an_image_has_to_fool_a_random_model_in_every_sample():
    options = {"epsilon": 0.5, "step_size": 0.08, "gradient_samples": 3, "stop_when_fooled": True}
    attack = _attack(Sampled(), shape=PIXEL, class_count=2, **options)
    outcome = attack.run(np.full((4, *PIXEL), 0.1, np.float32), np.zeros(4, int))
    assert outcome.iterations.tolist() == [4] * 4


@functools.cache
def _bumpy_attack(shape, class_count, norm, targeted):
    model = Wavy(class_count, math.prod(shape))
    options = {"norm": norm, "targeted": targeted, "keep_best": True, "batch_size": 4}
    return model, _attack(model, shape=shape, class_count=class_count, **options)


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
        assert norms(moved - images, norm).max() <= epsilon + (1e-6 if norm == math.inf else 1e-5)
        assert moved.min() >= 0
        assert moved.max() <= 1
        np.testing.assert_array_equal(moved[mask == 0], images[mask == 0])
        gain = -outcome.loss if targeted else outcome.loss
        ranks.append(gain + 1000 * _is_fooled(model, moved, labels, targeted))
    assert (ranks[1] >= ranks[0] - 1e-5).all()


@pytest.mark.parametrize(
    ("norm", "epsilon", "step_size", "targeted"),
    [(math.inf, 0.05, 0.01, False), (math.inf, 0.05, 0.01, True), (2, 0.5, 0.1, True)],
)
def test_makes_the_images_that_art_makes(norm, epsilon, step_size, targeted):
    classifier, (images, labels) = convolutional_classifier(), samples(5)
    shared = {"norm": norm, "targeted": targeted, "batch_size": 16}
    reference = ArtProjectedGradientDescent(
        classifier, eps=epsilon, eps_step=step_size, max_iter=10, verbose=False, **shared
    )
    attack = ProjectedGradientDescent(
        classifier, epsilon=epsilon, step_size=step_size, iterations=10, **shared
    )
    expected = reference.generate(images, labels)
    assert np.abs(expected - images).max() > 0.04
    outcome = attack.run(images, labels)
    np.testing.assert_allclose(outcome.images, expected, atol=1e-6)
    losses = cross_entropy(classifier.model, outcome.images, labels)
    np.testing.assert_allclose(outcome.loss, losses, atol=1e-5)
    assert outcome.iterations.tolist() == [10] * 20
    assert not outcome.zero_gradient.any()


def test_accuracy_falls_as_the_radius_grows():
    model, (images, labels) = digit_model(), (array[:200] for array in digits())
    classifier = wrap_classifier(model, 10, DIGIT_SHAPE, 100)
    attack = ProjectedGradientDescent(
        classifier, epsilon=0.1, step_size=0.02, iterations=30, keep_best=True
    )
    one_step = FastGradientMethod(classifier, epsilon=0.1)
    accuracies = [accuracy(model, images, labels)]
    for epsilon in (0.03, 0.06, 0.12, 0.24, 0.48):
        attack.set_params(epsilon=epsilon)
        accuracies.append(accuracy(model, attack.generate(images, labels), labels))
        one_step.set_params(epsilon=epsilon)
        moved = one_step.generate(images, labels)
        assert accuracies[-1] <= accuracy(model, moved, labels)
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.85
    assert accuracies[-1] == 0.0


@pytest.mark.parametrize("surrogate", ["identity", "smooth"])
def test_a_defence_by_bit_depth_alone_falls(surrogate):
    """A defence known to be broken validates the attack (Athalye et al. 2018)."""
    images, labels = (array[:100] for array in digits())
    defended = DefendedModel(digit_model(), None, parse_preprocessor("bit_depth_4", surrogate))
    assert accuracy(defended, images, labels) > 0.85
    attack = ProjectedGradientDescent(
        wrap_classifier(defended, 10, DIGIT_SHAPE, 100),
        epsilon=0.25,
        step_size=0.03,
        iterations=30,
        random_start=True,
        keep_best=True,
    )
    assert accuracy(defended, attack.generate(images, labels), labels) < 0.02
