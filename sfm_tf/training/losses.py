"""The masker's loss (Yu et al. 2022, section 4) as pure functions.

The paper writes its norms for one image and does not say how a mini-batch is reduced. Both readings
are here: `per_image` takes the norm of each image and averages, `batch` takes one norm over all
values of the batch. They are not one setting in two units: see `sparsity_ratio`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.training.settings import TrainingConfig

_SQUARED_EPSILON = 1e-12
"""Added below square roots, whose gradient at zero is infinite: where a mask of ones leads."""


class LossWeights(NamedTuple):
    """Weights w1, w2 and w3 of Eq. 2; the first may be a scalar tensor."""

    sparsity: float | tf.Tensor
    semantic: float
    reconstruction: float


class MaskerLoss(NamedTuple):
    """The terms of Eq. 2, scalars, unweighted, and their weighted sum `total`."""

    total: tf.Tensor
    sparsity: tf.Tensor
    semantic: tf.Tensor
    reconstruction: tf.Tensor


def _per_image(values: tf.Tensor) -> tf.Tensor:
    return tf.reshape(values, [tf.shape(values)[0], -1])


def _whole_batch(values: tf.Tensor) -> tf.Tensor:
    return tf.reshape(values, [1, -1])


_ROWS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "per_image": _per_image,
    "batch": _whole_batch,
}
"""How a batch is cut into the rows whose norms are averaged."""


def _rows(values: tf.Tensor, reduction: str) -> tf.Tensor:
    if reduction not in _ROWS:
        raise SfmError(f"Unknown loss reduction {reduction!r}; expected one of {', '.join(_ROWS)}.")
    return _ROWS[reduction](tf.cast(values, tf.float32))


def sparsity_loss(masked_images: tf.Tensor, reduction: str) -> tf.Tensor:
    """Returns the L1 norm of the masked images (Eq. 3).

    Args:
        masked_images: Float tensor in [0, 1] of shape `(batch, height, width, channels)`.
        reduction: `per_image` or `batch`.

    Returns:
        Scalar, in units of brightness: between 0 and `height * width * channels`, times the number
        of images for `batch`.
    """
    return tf.reduce_mean(tf.reduce_sum(tf.abs(_rows(masked_images, reduction)), axis=1))


def semantic_loss(logits: tf.Tensor, masked_logits: tf.Tensor) -> tf.Tensor:
    """Returns the cosine distance between the classifier's two outputs (Eq. 4).

    Args:
        logits: Float tensor of shape `(batch, classes)`, for the images.
        masked_logits: Float tensor of the same shape, for the masked images.

    Returns:
        Scalar in [0, 2], the mean over the batch; 1 where either output is all zeros.
    """
    logits, masked_logits = tf.cast(logits, tf.float32), tf.cast(masked_logits, tf.float32)
    norms = _norm(logits) * _norm(masked_logits)
    return tf.reduce_mean(1.0 - tf.reduce_sum(logits * masked_logits, axis=1) / norms)


def classification_loss(masked_logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the cross-entropy that section 4.2 warns of: the mask learns to show the label.

    Args:
        masked_logits: Float tensor of shape `(batch, classes)`, for the masked images.
        labels: Integers of shape `(batch,)`.

    Returns:
        Scalar, at least 0, the mean over the batch.
    """
    losses = keras.losses.sparse_categorical_crossentropy(
        labels, tf.cast(masked_logits, tf.float32), from_logits=True
    )
    return tf.reduce_mean(losses)


SEMANTIC_LOSSES: Mapping[str, Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "cosine": lambda logits, masked_logits, labels: semantic_loss(logits, masked_logits),
    "cross_entropy": lambda logits, masked_logits, labels: classification_loss(
        masked_logits, labels
    ),
}
"""What can be the semantic loss, of the logits for images and masked images and the labels."""


def reconstruction_loss(images: tf.Tensor, masked_images: tf.Tensor, reduction: str) -> tf.Tensor:
    """Returns the L2 distance between the images and the masked images (Eq. 5).

    Args:
        images: Float tensor in [0, 1] of shape `(batch, height, width, channels)`.
        masked_images: Float tensor of the same shape.
        reduction: `per_image` or `batch`.

    Returns:
        Scalar, in units of brightness: between 0 and `sqrt(height * width * channels)`, times the
        square root of the number of images for `batch`.
    """
    return tf.reduce_mean(_norm(_rows(images - masked_images, reduction)))


def _norm(rows: tf.Tensor) -> tf.Tensor:
    """Returns the L2 norm of each row; its gradient is finite, and zero, at zero."""
    return tf.sqrt(tf.reduce_sum(tf.square(rows), axis=1) + _SQUARED_EPSILON)


def masker_loss(
    images: tf.Tensor,
    masked_images: tf.Tensor,
    semantic: tf.Tensor,
    weights: LossWeights,
    reduction: str,
) -> MaskerLoss:
    """Returns the masker's loss and its terms (Eq. 2).

    Args:
        images: Float tensor in [0, 1] of shape `(batch, height, width, channels)`.
        masked_images: Float tensor of the same shape: mask times images.
        semantic: One of `SEMANTIC_LOSSES`, for both.
        weights: Weights of the terms.
        reduction: Of sparsity and reconstruction: `per_image` or `batch`.
    """
    sparsity = sparsity_loss(masked_images, reduction)
    reconstruction = reconstruction_loss(images, masked_images, reduction)
    total = (
        weights.sparsity * sparsity
        + weights.semantic * semantic
        + weights.reconstruction * reconstruction
    )
    return MaskerLoss(total, sparsity, semantic, reconstruction)


def sparsity_ratio(
    weights: LossWeights, image_shape: Sequence[int], reduction: str, batch_size: int
) -> float:
    """Returns how far the sparsity weight is above the one at which ones stop being the best mask.

    Let `d = x - G(x) * x` have `n` values. Without semantics Eq. 2 is, up to a constant,
    `w3 * |d|_2 - w1 * |d|_1`, and `|d|_1 <= sqrt(n) * |d|_2`. So as long as
    `w1 * sqrt(n) / w3 < 1` nothing is gained by masking anything; above 1 a mask of zeros is
    cheaper for evenly bright images, and only the semantic term stands against it.

    Args:
        weights: Weights of Eq. 2.
        image_shape: Height, width and channels.
        reduction: `per_image`, or `batch`, for which `n` counts the values of all its images.
        batch_size: Images per batch.

    Returns:
        `w1 * sqrt(n) / w3`; infinite without a reconstruction term.
    """
    values = math.prod(image_shape) * (batch_size if reduction == "batch" else 1)
    if weights.reconstruction == 0.0:
        return math.inf
    return weights.sparsity * math.sqrt(values) / weights.reconstruction


_RAMP_START = 0.5
"""Ratio at which a ramp of w1 begins: well below the one at which masking begins to pay."""


@dataclasses.dataclass(frozen=True)
class WeightRatios:
    """The weights of Eq. 2 as they were given and as ratios.

    Attributes:
        sparsity_weight: w1.
        semantic_weight: w2.
        reconstruction_weight: w3.
        loss_reduction: `per_image` or `batch`.
        values: n, the values that a norm of Eq. 3 or 5 runs over.
        sparsity_ratio: w1 sqrt(n) / w3, see `losses.sparsity_ratio`; None where w3 is 0.
        semantic_ratio: w2 / (w3 |x|_2), how much a lost class weighs beside a lost image, |x|_2
            being the mean norm of the training images; None where w3 is 0.
        image_norm: That mean norm, in units of brightness.
    """

    sparsity_weight: float
    semantic_weight: float
    reconstruction_weight: float
    loss_reduction: str
    values: int
    sparsity_ratio: float | None
    semantic_ratio: float | None
    image_norm: float

    @property
    def first_share(self) -> float:
        """Share of w1 that a ramp begins with: at most all of it."""
        if self.sparsity_ratio is None or self.sparsity_ratio == 0.0:
            return 0.0
        return min(1.0, _RAMP_START / self.sparsity_ratio)

    def warning(self) -> str:
        """Returns what to change if a mask of ones is the optimum apart from semantics."""
        if self.sparsity_ratio is None or self.sparsity_ratio > 1.0:
            return ""
        return (
            f"With sparsity_weight {self.sparsity_weight:g} a mask of ones is the optimum, apart "
            f"from the semantic loss (w1 * sqrt(n) / w3 is {self.sparsity_ratio:.2f}; it must be "
            "above 1). Raise sparsity_weight or lower reconstruction_weight."
        )


def measure_ratios(config: TrainingConfig, images: np.ndarray | tf.Tensor) -> WeightRatios:
    """Returns the weights of a training with their ratios.

    Args:
        config: The weights, and how norms run over a batch.
        images: Training images, float32 in [0, 1], shape `(count, height, width, channels)`.
    """
    weights = LossWeights(
        config.sparsity_weight, config.semantic_weight, config.reconstruction_weight
    )
    shape, batch_size = tuple(images.shape[1:]), min(config.batch_size, int(images.shape[0]))
    norm = float(tf.reduce_mean(tf.norm(tf.reshape(images, (images.shape[0], -1)), axis=1)))
    count = 1
    if config.loss_reduction == "batch":
        norm, count = norm * math.sqrt(batch_size), batch_size
    has_reconstruction = weights.reconstruction > 0.0
    ratio = sparsity_ratio(weights, shape, config.loss_reduction, batch_size)
    return WeightRatios(
        *weights,
        loss_reduction=config.loss_reduction,
        values=math.prod(shape) * count,
        sparsity_ratio=ratio if has_reconstruction else None,
        semantic_ratio=weights.semantic / (weights.reconstruction * norm)
        if has_reconstruction
        else None,
        image_norm=norm,
    )
