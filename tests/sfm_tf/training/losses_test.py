"""Tests of the masker's loss against hand-computed values, finite differences and enumeration."""

import math

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.training.losses import (
    LossWeights,
    masker_loss,
    measure_ratios,
    reconstruction_loss,
    semantic_loss,
    sparsity_loss,
    sparsity_ratio,
)
from sfm_tf.training.settings import TrainingConfig

# Two images of 1x2 pixels and one channel.
_IMAGES = np.array([[[[0.8], [0.6]]], [[[1.0], [0.0]]]], np.float32)
_MASKED = np.array([[[[0.5], [0.2]]], [[[1.0], [0.0]]]], np.float32)


@pytest.mark.parametrize(
    ("reduction", "sparsity", "reconstruction"), [("per_image", 0.85, 0.25), ("batch", 1.7, 0.5)]
)
def test_terms_are_the_sum_of_brightness_and_the_euclidean_distance(
    reduction, sparsity, reconstruction
):
    # L1 norms 0.7 and 1.0.
    assert sparsity_loss(_MASKED, reduction).numpy() == pytest.approx(sparsity)
    # Differences (0.3, 0.4) and (0, 0): norms 0.5 and 0, and 0.5 over both.
    distance = reconstruction_loss(_IMAGES, _MASKED, reduction).numpy()
    assert distance == pytest.approx(reconstruction, abs=1e-5)


def test_reductions_of_the_distance_are_not_one_another_scaled():
    images = np.ones((2, 1, 1, 1), np.float32)
    even, uneven = (np.reshape(v, (2, 1, 1, 1)).astype(np.float32) for v in ([0, 0], [1, -1]))
    per_image = [reconstruction_loss(images, x, "per_image").numpy() for x in (even, uneven)]
    batch = [reconstruction_loss(images, x, "batch").numpy() for x in (even, uneven)]
    assert per_image == pytest.approx([1.0, 1.0])
    assert batch == pytest.approx([math.sqrt(2), 2.0])


@pytest.mark.parametrize(
    ("logits", "masked_logits", "expected"),
    [
        ([[3.0, 4.0]], [[6.0, 8.0]], 0.0),
        ([[3.0, 4.0]], [[-3.0, -4.0]], 2.0),
        ([[1.0, 0.0]], [[0.0, 5.0]], 1.0),
        ([[1.0, 0.0]], [[0.0, 0.0]], 1.0),
        ([[1.0, 0.0]], [[3.0, 4.0]], 0.4),
        ([[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [0.0, 1.0]], 0.2),
    ],
)
def test_semantic_is_the_mean_cosine_distance(logits, masked_logits, expected):
    loss = semantic_loss(tf.constant(logits), tf.constant(masked_logits)).numpy()
    assert loss == pytest.approx(expected, abs=1e-6)


_WEIGHTS = LossWeights(0.3, 2.0, 1.0)


def _total(mask, weights=_WEIGHTS, reduction="per_image"):
    """Eq. 2 for a fixed linear classifier, as a function of the mask."""
    images = tf.constant(_IMAGES)
    kernel = tf.constant([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0]])
    masked_images = mask * images
    logits, masked_logits = (
        tf.reshape(values, [2, 2]) @ kernel for values in (images, masked_images)
    )
    semantic = semantic_loss(logits, masked_logits)
    return masker_loss(images, masked_images, semantic, weights, reduction)


def test_total_is_the_weighted_sum_of_the_terms():
    weights = LossWeights(0.3, 2.0, 0.7)
    loss = _total(tf.fill([2, 1, 2, 1], 0.25), weights)
    # A uniform mask m leaves the direction of linear logits alone, multiplies the L1 norms 1.4 and
    # 1.0 by m and the L2 norms 1.0 and 1.0 by 1 - m.
    assert loss.sparsity.numpy() == pytest.approx(0.25 * 1.2)
    assert loss.semantic.numpy() == pytest.approx(0.0, abs=1e-6)
    assert loss.reconstruction.numpy() == pytest.approx(0.75)
    assert loss.total.numpy() == pytest.approx(0.3 * 0.3 + 0.7 * 0.75, abs=1e-5)


@pytest.mark.parametrize("reduction", ["per_image", "batch"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradient_is_finite_at_masks_of_zeros_and_ones(reduction, value):
    mask = tf.fill([2, 1, 2, 1], value)
    with tf.GradientTape() as tape:
        tape.watch(mask)
        loss = _total(mask, reduction=reduction).total
    assert np.isfinite(loss.numpy())
    assert np.all(np.isfinite(tape.gradient(loss, mask).numpy()))


@pytest.mark.parametrize("reduction", ["per_image", "batch"])
def test_gradient_agrees_with_finite_differences(reduction):
    mask = np.random.default_rng(0).uniform(0.2, 0.8, (2, 1, 2, 1)).astype(np.float32)
    analytic, numeric = tf.test.compute_gradient(
        lambda values: _total(values, reduction=reduction).total, [tf.constant(mask)], delta=1e-2
    )
    assert np.abs(numeric[0]).max() > 0.1
    np.testing.assert_allclose(analytic[0], numeric[0], atol=2e-3)


def test_terms_are_float32_for_16_bit_inputs():
    half = tf.constant(_MASKED, tf.float16)
    assert sparsity_loss(half, "batch").dtype == tf.float32
    assert reconstruction_loss(half, half, "batch").dtype == tf.float32
    assert semantic_loss(half[:, 0, :, 0], half[:, 0, :, 0]).dtype == tf.float32


def test_unknown_reduction_lists_the_known_ones():
    with pytest.raises(SfmError, match=r"Unknown loss reduction 'sum'; .* per_image, batch\."):
        sparsity_loss(_MASKED, "sum")


@pytest.mark.parametrize(
    ("critical_weight", "reconstruction", "image_shape", "reduction"),
    [
        (0.01804, 1.0, (32, 32, 3), "per_image"),
        (0.001595, 1.0, (32, 32, 3), "batch"),
        (0.9021, 100.0, (64, 64, 3), "per_image"),
        (0.125, 1.0, (8, 8, 1), "per_image"),
    ],
)
def test_ratio_is_1_at_the_critical_weight(critical_weight, reconstruction, image_shape, reduction):
    weights = LossWeights(critical_weight, 0.0, reconstruction)
    ratio = sparsity_ratio(weights, image_shape, reduction, batch_size=128)
    assert ratio == pytest.approx(1.0, rel=1e-3)


def test_ratio_is_infinite_and_not_shown_without_reconstruction():
    assert sparsity_ratio(LossWeights(0.1, 1.0, 0.0), (8, 8, 1), "per_image", 1) == math.inf
    ratios = _ratios(reconstruction_weight=0.0)
    assert (ratios.sparsity_ratio, ratios.semantic_ratio, ratios.warning()) == (None, None, "")


@pytest.mark.parametrize("reduction", ["per_image", "batch"])
@pytest.mark.parametrize(("ratio", "best"), [(0.9, 1.0), (1.1, 0.0)])
def test_best_uniform_mask_of_white_images_flips_where_the_ratio_is_1(reduction, ratio, best):
    images = tf.ones([4, 3, 3, 1])
    weights = LossWeights(
        ratio / sparsity_ratio(LossWeights(1, 0, 1), (3, 3, 1), reduction, 4), 0, 1
    )
    values = np.linspace(0.0, 1.0, 11)
    losses = [
        masker_loss(images, value * images, tf.zeros([]), weights, reduction).total.numpy()
        for value in values
    ]
    assert values[np.argmin(losses)] == best


# Norms 2 and 1 of two images of 16 values.
_RATIO_IMAGES = np.stack([np.full((4, 4, 1), 0.5), np.full((4, 4, 1), 0.25)]).astype(np.float32)


def _ratios(**weights):
    return measure_ratios(TrainingConfig(**weights), _RATIO_IMAGES)


def test_ratios_of_norms_per_image():
    ratios = _ratios(sparsity_weight=0.3, semantic_weight=6.0, reconstruction_weight=2.0)
    assert ratios.values == 16
    assert ratios.image_norm == pytest.approx(1.5)
    assert ratios.sparsity_ratio == pytest.approx(0.3 * 4 / 2)
    assert ratios.semantic_ratio == pytest.approx(6.0 / (2 * 1.5))


def test_ratios_of_norms_over_the_batch_count_the_images_of_one():
    ratios = _ratios(loss_reduction="batch", batch_size=128)
    assert ratios.values == 32  # There are only two images to a batch.
    assert ratios.image_norm == pytest.approx(1.5 * math.sqrt(2))


@pytest.mark.parametrize(("weight", "share"), [(0.5, 0.25), (0.1, 1.0), (0.0, 0.0)])
def test_ramp_begins_at_half_the_critical_weight_or_where_it_stays(weight, share):
    assert _ratios(sparsity_weight=weight).first_share == pytest.approx(share)


def test_weight_below_the_critical_one_is_warned_of():
    assert "optimum, apart from the semantic loss (w1 * sqrt(n) / w3 is 0.80;" in (
        _ratios(sparsity_weight=0.2).warning()
    )
    assert _ratios(sparsity_weight=0.26).warning() == ""
