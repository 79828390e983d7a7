"""The weights of the masker's loss beside what makes them comparable between image sizes."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from sfm_tf.training.losses import LossWeights, sparsity_ratio
from sfm_tf.training_config import TrainingConfig

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
        """Returns what to change where a mask of ones is the optimum but for semantics."""
        if self.sparsity_ratio is None or self.sparsity_ratio > 1.0:
            return ""
        return (
            f"sparsity_weight {self.sparsity_weight:g} is {self.sparsity_ratio:.2f} of the least "
            "at which the loss is not smallest for a mask of ones; raise it or lower "
            "reconstruction_weight."
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
