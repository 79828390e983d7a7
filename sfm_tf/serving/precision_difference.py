"""What a model's answers lose when it is served in 16 bits."""

import dataclasses

import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.serving.saved_model import served_model


@dataclasses.dataclass(frozen=True)
class PrecisionDifference:
    """How the answers in another precision compare with those in float32.

    Attributes:
        precision: The other precision.
        examples: Images compared.
        disagreeing_labels: Images whose class differs.
        max_logit_difference: Largest absolute difference of a logit; NaN if a logit is one.
        accuracy: Share of the images whose class is their label, in the other precision.
        float32_accuracy: The same in float32.
    """

    precision: str
    examples: int
    disagreeing_labels: int
    max_logit_difference: float
    accuracy: float
    float32_accuracy: float


def compare_precision(
    defended: DefendedModel,
    precision: str,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 64,
) -> PrecisionDifference:
    """Compares a model with what `export_saved_model` would export of it in another precision.

    Args:
        defended: The model that was evaluated.
        precision: One of `saved_model.PRECISIONS`.
        images: Float32 in [0, 1], shape `(count, height, width, channels)`, at least one.
        labels: Their classes, int64 of shape `(count,)`.
        batch_size: Images classified at a time.

    Raises:
        SfmError: If there is no image, their number is not that of the labels, or the precision is
            unknown.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise SfmError(
            f"Cannot compare {precision} with float32 on {len(images)} images with {len(labels)} "
            "labels; expected a label for each of at least one image."
        )
    expected = _logits(defended, images, batch_size)
    found = _logits(served_model(defended, precision), images, batch_size)
    expected_classes, found_classes = np.argmax(expected, axis=-1), np.argmax(found, axis=-1)
    return PrecisionDifference(
        precision=precision,
        examples=len(images),
        disagreeing_labels=int(np.sum(expected_classes != found_classes)),
        max_logit_difference=float(np.max(np.abs(expected - found))),
        accuracy=float(np.mean(found_classes == labels)),
        float32_accuracy=float(np.mean(expected_classes == labels)),
    )


def _logits(defended: DefendedModel, images: np.ndarray, batch_size: int) -> np.ndarray:
    compiled = tf.function(lambda batch: defended(batch), reduce_retracing=True)
    starts = range(0, len(images), batch_size)
    batches = [tf.constant(images[start : start + batch_size]) for start in starts]
    return np.concatenate([tf.cast(compiled(batch), tf.float32).numpy() for batch in batches])
