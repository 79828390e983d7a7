"""Whether what a signature answered is what the evaluated model says."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from sfm_tf.choices import PIXEL_LEVELS
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.serving.signatures import (
    BYTES_SIGNATURE_NAME,
    EXPLAIN_SIGNATURE_NAME,
    SIGNATURE_NAME,
)

TOLERANCE = 1e-4
"""Largest difference of a value that is rounding: float32 and two compilations of one graph."""

PNG_TOLERANCE = 0.5 / PIXEL_LEVELS + TOLERANCE
"""The same where a value in [0, 1] went through a file with 8 bits."""

CLASS_ID = "class_id"

_KEPT_IN_PNG = {
    "mask_png_bytes": "mask",
    "masked_png_bytes": "masked_image",
    "defended_png_bytes": "defended_image",
}


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How the answers of a signature compare with those of the Keras model.

    Attributes:
        disagreeing_labels: Images whose class differs.
        max_differences: For every other output the largest absolute difference of a value; NaN
            where one is not a number.
    """

    disagreeing_labels: int
    max_differences: Mapping[str, float]

    def worse(self, other: "Agreement") -> "Agreement":
        """Returns the larger figures of two comparisons of one signature."""
        differences = {
            # NumPy's maximum, unlike Python's, keeps a NaN.
            name: float(np.maximum(difference, other.max_differences[name]))
            for name, difference in self.max_differences.items()
        }
        return Agreement(max(self.disagreeing_labels, other.disagreeing_labels), differences)

    def excesses(self) -> dict[str, float]:
        """Returns the differences that are no rounding, by output."""
        # Written so that NaN, which compares with nothing, is one.
        return {
            name: difference
            for name, difference in self.max_differences.items()
            if not difference <= (PNG_TOLERANCE if name in _KEPT_IN_PNG else TOLERANCE)
        }


def compare_answers(
    signature: str,
    answers: Mapping[str, np.ndarray],
    defended: DefendedModel,
    images: np.ndarray,
    batch_size: int,
) -> Agreement:
    """Compares answers to images with what the Keras model says of them, batch by batch.

    Both sides compute compiled, on the CPU and with the same batch sizes: quantisation turns the
    last bit of a float into a whole level, so that the rounding of a GPU, or of eager execution,
    would alone make a logit differ by some hundredths.

    Args:
        signature: Name of the signature.
        answers: Its outputs by name, for all images; those that are PNG files decoded.
        defended: The model that was evaluated.
        images: The images, or what decoding their files gives.
        batch_size: How many images were sent at a time.

    Raises:
        SfmError: If the outputs are others than those that the signature is to have.
    """
    compute = tf.function(
        lambda batch: _EXPECTED[signature](defended, batch),
        input_signature=[tf.TensorSpec((None, *images.shape[1:]), tf.float32)],
    )
    disagreeing, differences = 0, {}
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        with tf.device("/CPU:0"):
            expected = {name: values.numpy() for name, values in compute(batch).items()}
        _check_names(signature, answers, expected)
        served = {name: answers[name][start : start + batch_size] for name in expected}
        disagreeing += int(np.sum(served.pop(CLASS_ID) != expected.pop(CLASS_ID)))
        for name, values in served.items():
            found = _largest_difference(values, expected[name])
            # NumPy's maximum, unlike Python's, keeps a NaN.
            differences[name] = float(np.maximum(differences.get(name, 0.0), found))
    return Agreement(disagreeing, differences)


def _check_names(
    signature: str, answers: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> None:
    if set(answers) != set(expected):
        raise SfmError(
            f"The signature {signature} of the SavedModel gives {', '.join(sorted(answers))}; "
            f"expected {', '.join(sorted(expected))}. Export again."
        )


def _largest_difference(served: np.ndarray, expected: np.ndarray) -> float:
    if served.shape != expected.shape:
        return float("inf")
    scale = PIXEL_LEVELS if served.dtype == np.uint8 else 1.0
    return float(np.max(np.abs(served / scale - expected)))


def _classify(defended: DefendedModel, images: tf.Tensor) -> dict[str, tf.Tensor]:
    logits = tf.cast(defended(images), tf.float32)
    return {
        "logits": logits,
        "probabilities": tf.nn.softmax(logits),
        CLASS_ID: tf.argmax(logits, axis=-1),
    }


def _classify_files(defended: DefendedModel, images: tf.Tensor) -> dict[str, tf.Tensor]:
    answers = _classify(defended, images)
    return {**answers, "status": tf.zeros_like(answers[CLASS_ID])}


def _explain(defended: DefendedModel, images: tf.Tensor) -> dict[str, tf.Tensor]:
    arrays = {
        "mask": defended.mask(images),
        "masked_image": defended.masked(images),
        "defended_image": defended.defended(images),
    }
    files = {name: arrays[kept] for name, kept in _KEPT_IN_PNG.items()}
    return {**arrays, **files, CLASS_ID: tf.argmax(defended(images), axis=-1)}


_EXPECTED: Mapping[str, Callable[[DefendedModel, tf.Tensor], dict[str, tf.Tensor]]] = {
    SIGNATURE_NAME: _classify,
    BYTES_SIGNATURE_NAME: _classify_files,
    EXPLAIN_SIGNATURE_NAME: _explain,
}
