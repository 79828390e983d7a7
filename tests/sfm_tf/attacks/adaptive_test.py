import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.defences.preprocessor import SpatialSmoothingTensorFlowV2
from scipy.special import expit, softmax

from sfm_tf.attacks.adaptive import OBJECTIVES, AdaptiveGradientDescent
from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import BatchedTensorFlowClassifier, wrap_classifier
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from tests.attacked_models import (
    accuracy,
    cross_entropy,
    linear_classifier,
    norms,
    predictions,
    random_starts,
    samples,
)

SHAPE = (4, 4, 1)
KERNEL = 3.0 * np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
SLOPE, OFFSET = 4.0, -2.0
OPTIONS = {"epsilon": 0.1, "step_size": 0.03, "iterations": 8}


class Sigmoid(keras.Model):
    """A mask of sigmoid(4 * pixel - 2)."""

    def call(self, images):
        return tf.sigmoid(SLOPE * images + OFFSET)


class Ripples(keras.Model):
    """A mask of nearly 1/2, whose slope is steep and says nothing of where the mask goes."""

    def call(self, images):
        return 0.5 + 0.02 * tf.sin(500.0 * images)


def _defended(masker=None, spec="none", surrogate="identity", kernel=KERNEL):
    preprocessor = parse_preprocessor(spec, surrogate)
    classifier = linear_classifier(kernel, shape=SHAPE).model
    return DefendedModel(classifier, masker or Sigmoid(), preprocessor)


def _wrap(model, class_count=3):
    return wrap_classifier(model, class_count, SHAPE, 64)


def _attack(model=None, **options):
    return AdaptiveGradientDescent(_wrap(model or _defended()), **{**OPTIONS, **options})


def _samples(count=12):
    return samples(3, 0.2, 0.8, count, SHAPE)


def _gradients(images, clean_images, labels, mask_weight):
    """The terms of the gradient at `images`, by hand."""
    masks, clean_masks = expit(SLOPE * images + OFFSET), expit(SLOPE * clean_images + OFFSET)
    slopes = SLOPE * masks * (1 - masks)
    logits = (masks * images).reshape(-1, 16) @ KERNEL
    errors = softmax(logits, axis=1) - np.eye(3)[labels]
    behind = (errors @ KERNEL.T).reshape(images.shape)
    distances = mask_weight * 2 * (masks - clean_masks) * slopes / 16
    whole = behind * (masks + images * slopes)
    return {
        "mask_aware": whole + distances,
        "mask_stage": distances,
        "frozen_mask": behind * masks,
    }


@pytest.mark.parametrize(
    ("objective", "targeted"),
    [*((objective, False) for objective in OBJECTIVES), ("mask_aware", True)],
)
def test_the_first_step_follows_the_gradient_of_the_objective(objective, targeted):
    """A targeted attack lowers the loss but still moves the mask."""
    images, labels = _samples()
    clean, starts = images.astype(np.float64), random_starts(images, 2, 0.3)
    attack = _attack(
        objective=objective,
        targeted=targeted,
        norm=2,
        epsilon=0.3,
        step_size=0.01,
        iterations=1,
        mask_weight=50.0,
        keep_best=False,
    )
    moves = attack.generate(images, labels) - starts
    terms = _gradients(starts, clean, labels, 50.0)
    # The other way for the loss, the same way for the mask.
    gradient = 2 * terms["mask_stage"] - terms["mask_aware"] if targeted else terms[objective]
    expected = 0.01 * gradient / np.sqrt((gradient**2).sum(axis=(1, 2, 3), keepdims=True))
    inside = norms(starts + expected - clean, 2) < 0.3
    assert inside.sum() >= 4
    np.testing.assert_allclose(moves[inside], expected[inside], atol=2e-6)


def test_the_mask_stage_drives_every_pixel_to_the_end_it_started_towards():
    images, labels = _samples()
    side = np.sign(random_starts(images, math.inf, 0.1) - images)
    attack = _attack(objective="mask_stage", keep_best=False)
    np.testing.assert_allclose(attack.generate(images, labels), images + 0.1 * side, atol=1e-6)


def test_without_the_mask_term_it_is_projected_gradient_descent():
    images, labels = _samples()
    model = _defended(spec="bit_depth_4")
    reference = ProjectedGradientDescent(
        _wrap(model), **OPTIONS, random_start=True, keep_best=True, loss="stable_cross_entropy"
    ).run(images, labels)
    outcome = _attack(model, objective="mask_aware", mask_weight=0.0).run(images, labels)
    np.testing.assert_array_equal(outcome.images, reference.images)
    np.testing.assert_array_equal(outcome.iterations, reference.iterations)


def test_a_mask_that_misleads_the_whole_gradient_falls_once_it_is_held():
    kernel = np.random.default_rng(2).choice([-1.0, 1.0], (16, 1)) * np.array([[1.0, -1.0]])
    model = _defended(Ripples(), kernel=kernel.astype(np.float32))
    images, _ = _samples(60)
    labels = predictions(model, images)
    # Half the mask's reach: what 0.2 of all pixels could do, with room to spare.
    margins = np.abs(np.diff(np.asarray(model(images)), axis=1))[:, 0]
    near = (margins > 1.0) & (margins < 2.2)
    images, labels = images[near], labels[near]
    assert len(images) >= 10
    options = {"epsilon": 0.2, "step_size": 0.02, "iterations": 30}
    white_box = ProjectedGradientDescent(
        _wrap(model, 2), **options, random_start=True, keep_best=True, loss="stable_cross_entropy"
    )
    fooled = {"white_box": white_box.generate(images, labels)}
    for objective in ("mask_stage", "frozen_mask"):
        attack = AdaptiveGradientDescent(_wrap(model, 2), objective=objective, **options)
        fooled[objective] = attack.generate(images, labels)
    shares = {name: 1 - accuracy(model, moved, labels) for name, moved in fooled.items()}
    assert shares["white_box"] <= 0.1
    assert shares["mask_stage"] <= 0.1
    assert shares["frozen_mask"] == 1.0


@pytest.mark.parametrize("objective", ["mask_stage", "frozen_mask"])
def test_the_best_iterate_is_the_worst_for_the_whole_served_model(objective):
    images, _ = _samples(40)
    model = _defended(Ripples(), spec="bit_depth_5")
    labels = predictions(model, images)
    outcome = _attack(model, objective=objective, iterations=5).run(images, labels)
    attack = _attack(model, objective=objective, keep_best=False)
    iterates = [random_starts(images, math.inf, 0.1)]
    for iterations in range(1, 6):
        attack.set_params(iterations=iterations)
        iterates.append(attack.generate(images, labels))
    losses = np.array([cross_entropy(model, iterate, labels) for iterate in iterates])
    fooled = np.array([predictions(model, i) != labels for i in iterates])
    best = np.where(fooled, losses + 1e3, losses).argmax(axis=0)
    assert fooled.any()
    assert (best < 5).any()
    assert outcome.iterations.tolist() == best.tolist()
    np.testing.assert_array_equal(outcome.images, np.array(iterates)[best, np.arange(40)])
    np.testing.assert_allclose(outcome.loss, losses[best, np.arange(40)], atol=1e-4)


def test_samples_of_a_model_that_is_not_random_change_nothing():
    images, labels = _samples()
    options = {"objective": "mask_aware", "mask_weight": 50.0, "keep_best": False}
    expected = _attack(**options).generate(images, labels)
    several = _attack(**options, gradient_samples=3).generate(images, labels)
    np.testing.assert_allclose(several, expected, atol=1e-6)


def test_a_model_without_masker_is_refused():
    classifier = linear_classifier(KERNEL, shape=SHAPE).model
    message = "needs a DefendedModel with a masker; found a Sequential. Use pgd instead."
    with pytest.raises(SfmError, match=message):
        _attack(classifier, objective="mask_aware")
    with pytest.raises(SfmError, match="found a DefendedModel without one"):
        _attack(DefendedModel(classifier), objective="frozen_mask")


def test_a_classifier_with_preprocessors_of_its_own_is_refused():
    classifier = BatchedTensorFlowClassifier(
        _defended(),
        3,
        SHAPE,
        clip_values=(0.0, 1.0),
        preprocessing=None,
        preprocessing_defences=SpatialSmoothingTensorFlowV2(window_size=3),
    )
    with pytest.raises(SfmError, match="all pre-processing inside the DefendedModel"):
        AdaptiveGradientDescent(classifier, objective="mask_aware", **OPTIONS)
