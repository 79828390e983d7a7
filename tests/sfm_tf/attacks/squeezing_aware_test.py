import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.attacks.squeezing_aware import SqueezingAwareGradientDescent
from sfm_tf.defences.feature_squeezing import squeezing_scorer
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import wrap_classifier
from sfm_tf.preprocessors.chain import parse_preprocessor
from tests.attacked_models import (
    DIGIT_SHAPE,
    Linear,
    accuracy,
    digit_model,
    digits,
    linear_classifier,
    norms,
    random_starts,
    samples,
)

SHAPE = (4, 4, 1)
KERNEL = Linear(3, 16).kernel
SQUEEZERS = ("bit_depth_1", "bit_depth_2")
STEPS = (1, 3)
"""Levels of the squeezers above zero."""

OPTIONS = {"epsilon": 0.1, "step_size": 0.03, "iterations": 8, "batch_size": 24}
ONE = {"squeezers": SQUEEZERS[1:], "surrogate": "identity"}
BOTH = {**ONE, "squeezers": SQUEEZERS}
AS_PGD = {"random_start": True, "keep_best": True, "loss": "stable_cross_entropy"}


def _classifier():
    return wrap_classifier(Linear(3, 16), 3, SHAPE, 64)


def _attack(**options):
    return SqueezingAwareGradientDescent(_classifier(), **{**OPTIONS, **ONE, **options})


def _samples(count=24):
    return samples(3, 0.2, 0.8, count, SHAPE)


def _logits(images):
    return images.reshape(-1, 16).astype(np.float64) @ KERNEL


def _losses(images, labels):
    return -log_softmax(_logits(images), axis=1)[np.arange(len(labels)), labels]


def _is_fooled(images, labels):
    return _logits(images).argmax(axis=1) != labels


def _each_distance(images):
    """L1 distances of every squeezer, by hand."""
    squeezed = [np.rint(images * steps) / steps for steps in STEPS]
    here = softmax(_logits(images), axis=1)
    return np.array([np.abs(here - softmax(_logits(s), axis=1)).sum(axis=1) for s in squeezed])


def _distance_gradients(images):
    """Gradient of the largest distance, with the identity for that of the squeezers."""
    largest, gradients = _each_distance(images).argmax(axis=0), []
    for image, squeezer in zip(images, largest, strict=True):
        squeezed = np.rint(image * STEPS[squeezer]) / STEPS[squeezer]
        p, q = (softmax(_logits(x[np.newaxis])[0]) for x in (image, squeezed))
        signs = np.sign(p - q)
        behind = [s * signs - s * (s @ signs) for s in (p, q)]
        gradients.append(KERNEL @ (behind[0] - behind[1]))
    return np.array(gradients).reshape(images.shape)


@pytest.mark.parametrize("targeted", [False, True])
def test_the_first_step_counts_the_distance_of_fooled_images_only(targeted):
    images, labels = _samples(40)
    starts = random_starts(images, 2, 0.3)
    options = {"norm": 2, "epsilon": 0.3, "step_size": 0.01, "iterations": 1, "keep_best": False}
    attack = _attack(**{**options, **BOTH}, targeted=targeted, distance_weight=2.0)
    moves = attack.generate(images, labels) - starts
    errors = softmax(_logits(starts), axis=1) - np.eye(3)[labels]
    gradient = (errors @ KERNEL.T).reshape(images.shape) * (-1 if targeted else 1)
    fooled = _is_fooled(starts, labels) != targeted
    gradient -= 2.0 * _distance_gradients(starts) * fooled[:, None, None, None]
    expected = 0.01 * gradient / np.sqrt((gradient**2).sum(axis=(1, 2, 3), keepdims=True))
    inside = norms(starts + expected - images, 2) < 0.3
    assert (inside & fooled).sum() >= 4
    assert (inside & ~fooled).sum() >= 4
    np.testing.assert_allclose(moves[inside], expected[inside], atol=2e-6)


def test_without_weight_and_threshold_it_is_projected_gradient_descent():
    images, labels = _samples()
    reference = ProjectedGradientDescent(_classifier(), **OPTIONS, **AS_PGD).run(images, labels)
    outcome = _attack(distance_weight=0.0).run(images, labels)
    np.testing.assert_array_equal(outcome.images, reference.images)
    np.testing.assert_array_equal(outcome.iterations, reference.iterations)
    np.testing.assert_allclose(outcome.loss, reference.loss, atol=1e-6)


def test_the_best_iterate_fools_the_classifier_and_passes_the_detector():
    images, labels = _samples(60)
    options = {**BOTH, "distance_weight": 5.0, "iterations": 6, "threshold": 0.6}
    outcome = _attack(**options).run(images, labels)
    attack = _attack(**options, keep_best=False)
    iterates = [random_starts(images, math.inf, 0.1)]
    for iterations in range(1, 7):
        attack.set_params(iterations=iterations)
        iterates.append(attack.generate(images, labels))
    losses = np.array([_losses(iterate, labels) for iterate in iterates])
    distances = np.array([_each_distance(iterate).max(axis=0) for iterate in iterates])
    fooled = np.array([_is_fooled(iterate, labels) for iterate in iterates])
    ranks = fooled * (1 + (distances <= 0.6))
    # Successes that pass, successes that are flagged and failures all occur as the best there is.
    assert set(ranks.max(axis=0)) == {0, 1, 2}
    best = (1e3 * ranks + losses - 5.0 * distances * fooled).argmax(axis=0)
    assert outcome.iterations.tolist() == best.tolist()
    np.testing.assert_array_equal(outcome.images, np.array(iterates)[best, np.arange(60)])
    np.testing.assert_allclose(outcome.loss, losses[best, np.arange(60)], atol=1e-4)


def test_only_images_that_pass_the_detector_are_done_with():
    images, labels = _samples(24)
    passing = {}
    for stop_when_fooled in (False, True):
        attack = _attack(threshold=0.2, stop_when_fooled=stop_when_fooled)
        moved = attack.generate(images, labels)
        passes = _each_distance(moved)[1] <= 0.2
        passing[stop_when_fooled] = (_is_fooled(moved, labels) & passes).tolist()
    # More than half, so that the loop goes on with fewer images and their weights.
    assert 12 < sum(passing[False]) < 24
    assert passing[True] == passing[False]


def test_a_trained_model_is_fooled_as_often_and_with_lower_scores():
    classifier = wrap_classifier(digit_model(), 10, DIGIT_SHAPE, 64)
    images, labels = (array[:64] for array in digits())
    specs = ("bit_depth_2", "median_2")
    options = {"epsilon": 0.25, "step_size": 0.03, "iterations": 25}
    plain = ProjectedGradientDescent(classifier, **options, **AS_PGD)
    aware = SqueezingAwareGradientDescent(classifier, **options, squeezers=specs)
    squeezers = [parse_preprocessor(spec) for spec in specs]
    shares, means = [], []
    for attack in (plain, aware):
        moved = attack.generate(images, labels)
        shares.append(1 - accuracy(classifier.model, moved, labels))
        means.append(squeezing_scorer(classifier, squeezers, 64)(moved).mean())
    assert shares[0] > 0.9
    assert shares[1] >= shares[0] - 0.02
    assert means[1] < 0.6 * means[0]


def test_the_surrogates_differ_and_the_default_squeezers_are_those_of_grey_images():
    images, labels = _samples()
    attack = _attack(distance_weight=20.0, keep_best=False, iterations=4, squeezers=())
    default = attack.generate(images, labels)
    attack.set_params(squeezers=("bit_depth_1", "median_2"))
    np.testing.assert_array_equal(attack.generate(images, labels), default)
    attack.set_params(surrogate="smooth")
    assert np.abs(attack.generate(images, labels) - default).max() > 0.02


def test_samples_of_a_model_that_is_not_random_change_nothing():
    images, labels = _samples()
    options = {"threshold": 0.6, "distance_weight": 1.0, "iterations": 4}
    expected = _attack(**options).generate(images, labels)
    several = _attack(**options, gradient_samples=3).generate(images, labels)
    np.testing.assert_allclose(several, expected, atol=1e-6)


def test_images_that_no_detector_is_known_for_need_squeezers():
    shape = (4, 4, 2)
    classifier = linear_classifier(np.zeros((32, 3)), shape=shape)
    images, labels = np.full((2, *shape), 0.5, np.float32), np.zeros(2, int)
    attack = SqueezingAwareGradientDescent(classifier, **OPTIONS)
    with pytest.raises(SfmError, match="No squeezers for images of 2 channels; expected 1 or 3"):
        attack.generate(images, labels)
    attack.set_params(squeezers=("median_2",))
    assert attack.generate(images, labels).shape == images.shape
