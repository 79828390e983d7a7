"""Checks of what an attack is given, made before any work is done."""

from typing import Any

import numpy as np

from sfm_tf.errors import SfmError

_PROBABILITY_TOLERANCE = 1e-4

_ENOUGH = 40
"""Outputs from which on it is no chance that all are in [0, 1]: logits have both signs."""

_NEAR_0, _NEAR_1 = 0.1, 0.9
"""How far the outputs of a trained sigmoid reach. Logits that happen to be in [0, 1] seldom do."""


def check_images(images: Any, image_shape: tuple[int, ...]) -> np.ndarray:
    """Returns `images` as float32 of shape `(batch, *image_shape)` with values in [0, 1].

    Raises:
        SfmError: If they are of another shape, hold a NaN or leave [0, 1].
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != tuple(image_shape) or len(images) == 0:
        expected = ", ".join(str(size) for size in image_shape)
        raise SfmError(f"Images of shape {images.shape}; expected (batch, {expected}), batch >= 1.")
    if np.issubdtype(images.dtype, np.floating) and np.isnan(images).any():
        first = int(np.argmax(np.isnan(images).any(axis=(1, 2, 3))))
        raise SfmError(f"Images hold NaN, first in image {first}; expected values in [0, 1].")
    low, high = images.min(), images.max()
    if low < 0 or high > 1:
        raise SfmError(
            f"Images of values from {low:.6g} to {high:.6g}; expected [0, 1]. "
            "Divide 8-bit images by 255."
        )
    return images.astype(np.float32, copy=False)


def check_labels(labels: Any, count: int, class_count: int) -> np.ndarray:
    """Returns `labels` as int64 class indices of shape `(count,)`.

    Args:
        labels: Class indices of shape `(count,)`, or `(count, 1)` as `keras.datasets` has them, or
            one-hot rows of shape `(count, class_count)`.
        count: Number of images.
        class_count: Number of classes.

    Raises:
        SfmError: If they are of another shape, not one-hot, not integers or outside the classes.
    """
    labels = np.asarray(labels)
    if labels.shape == (count, class_count):
        return _one_hot_to_indices(labels)
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,):
        raise SfmError(
            f"Labels of shape {labels.shape}; expected ({count},) class indices or "
            f"({count}, {class_count}) one-hot rows."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise SfmError(f"Labels of type {labels.dtype}; expected integer class indices.")
    if labels.min() < 0 or labels.max() >= class_count:
        raise SfmError(
            f"Labels from {labels.min()} to {labels.max()}; expected 0 to {class_count - 1}."
        )
    return labels.astype(np.int64)


def _one_hot_to_indices(labels: np.ndarray) -> np.ndarray:
    if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
        raise SfmError("Labels are rows that are not one-hot; expected a single 1 in each row.")
    return np.argmax(labels, axis=1).astype(np.int64)


def check_mask(mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the pixels that may change as float32 of `shape`; all of them for None.

    Raises:
        SfmError: If the mask cannot be broadcast to `shape`.
    """
    values = np.float32(1.0) if mask is None else np.asarray(mask, dtype=np.float32)
    try:
        return np.broadcast_to(values, shape)
    except ValueError as error:
        raise SfmError(
            f"Mask of shape {values.shape}; expected one that broadcasts to {shape}."
        ) from error


def check_logits(logits: np.ndarray, class_count: int) -> None:
    """Checks that a model's outputs are finite logits of `class_count` classes.

    Probabilities are refused, also those of a sigmoid for each class: a softmax or a sigmoid before
    the cross-entropy makes gradients vanish and a model look robust.

    Raises:
        SfmError: If they are of another shape, not finite, or probabilities.
    """
    if logits.ndim != 2 or logits.shape[1] != class_count:
        raise SfmError(f"Logits of shape {logits.shape}; expected (batch, {class_count}).")
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise SfmError(
            f"Logits are NaN or infinite for {np.sum(~finite)} of {len(logits)} images; "
            "expected finite logits. Check the model's weights."
        )
    in_range = logits.min() >= 0 and logits.max() <= 1
    if in_range and np.allclose(logits.sum(axis=1), 1.0, atol=_PROBABILITY_TOLERANCE):
        raise SfmError(
            "The model returns probabilities; expected logits. Remove its final softmax."
        )
    if in_range and logits.size >= _ENOUGH and logits.min() < _NEAR_0 and logits.max() > _NEAR_1:
        raise SfmError(
            f"The model's outputs are all in [0, 1], from {logits.min():.3g} to "
            f"{logits.max():.3g}, as those of a sigmoid; expected logits. Give the model without "
            "its last activation."
        )
