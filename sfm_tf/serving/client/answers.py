"""Answers of a served model, checked: what a server sends is not trusted to be complete."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.errors import SfmError

CLASSIFIED = 0
"""Status of an image that has scores."""

STATUS_WORDS = {
    CLASSIFIED: "classified",
    1: "cannot be decoded as PNG or JPEG",
    2: "larger than the server's limit of pixels per side",
}
"""What the statuses of the signature `predict_bytes` mean."""

NO_CLASS = -1
"""Class of an image that could not be classified."""

ROUNDING = 1e-3
"""How far above 1 a probability may be where a server computes in a lower precision."""

Outputs = Mapping[str, Sequence[Any] | np.ndarray]
"""Outputs of a signature by name, each with one item per image."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """How one image was classified.

    Attributes:
        class_id: Most probable class; `NO_CLASS` where the status is not `CLASSIFIED`.
        probabilities: Of each class, in [0, 1]; all equal where there is no class.
        logits: Scores before the softmax, as many.
        status: `CLASSIFIED`, or a key of `STATUS_WORDS` that says why there is no class.
    """

    class_id: int
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]
    status: int = CLASSIFIED

    @property
    def status_words(self) -> str:
        """The status in words."""
        return STATUS_WORDS.get(self.status, f"not classified, status {self.status}")


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """What the defence made of one image.

    Attributes:
        class_id: Most probable class.
        mask: Float32 in [0, 1] of shape `(height, width, 1)`; what the masker lets through.
        masked_image: Float32 of shape `(height, width, channels)`; the image times the mask.
        defended_image: Float32 of that shape; what the classifier sees.
        mask_png: The mask as a PNG file.
        masked_png: The masked image as a PNG file.
        defended_png: The defended image as a PNG file.
    """

    class_id: int
    mask: np.ndarray
    masked_image: np.ndarray
    defended_image: np.ndarray
    mask_png: bytes
    masked_png: bytes
    defended_png: bytes


def read_answers(outputs: Outputs, count: int) -> list[Answer]:
    """Returns the answers in the outputs of `serving_default` or `predict_bytes`.

    Args:
        outputs: `logits`, `probabilities`, `class_id` and, of `predict_bytes`, `status`.
        count: Images sent.

    Raises:
        SfmError: If an output is missing, holds a NaN or does not fit the others.
    """
    probabilities = _floats(outputs, "probabilities", count, rank=2)
    logits = _floats(outputs, "logits", count, rank=2)
    class_ids = _integers(outputs, "class_id", count)
    statuses = np.zeros(count, np.int64)
    if "status" in outputs:
        statuses = _integers(outputs, "status", count)
    if logits.shape != probabilities.shape:
        raise _malformed(f"{logits.shape[1]} logits and {probabilities.shape[1]} probabilities")
    if np.any(probabilities < 0) or np.any(probabilities > 1 + ROUNDING):
        raise _malformed("a probability outside [0, 1]")
    lowest = np.where(statuses == CLASSIFIED, 0, NO_CLASS)
    highest = np.where(statuses == CLASSIFIED, probabilities.shape[1] - 1, NO_CLASS)
    if np.any(class_ids < lowest) or np.any(class_ids > highest):
        raise _malformed("a class_id that is none of the classes, or does not fit its status")
    columns = (class_ids, probabilities, logits, statuses)
    return [
        Answer(class_id, tuple(chances), tuple(scores), status)
        for class_id, chances, scores, status in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def read_explanations(outputs: Outputs, count: int) -> list[Explanation]:
    """Returns the explanations in the outputs of `explain`.

    Args:
        outputs: An output for each attribute of `Explanation`.
        count: Images sent.

    Raises:
        SfmError: If an output is missing, holds a NaN or has another shape.
    """
    class_ids = _integers(outputs, "class_id", count).tolist()
    images = [
        _floats(outputs, name, count, rank=4) for name in ("mask", "masked_image", "defended_image")
    ]
    # TensorFlow Serving's REST interface spoils bytes in outputs that are not named so.
    names = ("mask_png_bytes", "masked_png_bytes", "defended_png_bytes")
    files = [_files(outputs, name, count) for name in names]
    return [Explanation(*values) for values in zip(class_ids, *images, *files, strict=True)]


def _floats(outputs: Outputs, name: str, count: int, rank: int) -> np.ndarray:
    values = _array(outputs, name, count, "fiu")
    if values.ndim != rank:
        raise _malformed(f"{name} of rank {values.ndim} instead of {rank}")
    values = values.astype(np.float32)
    if not np.all(np.isfinite(values)):
        raise _malformed(f"a value of {name} that is not finite")
    return values


def _integers(outputs: Outputs, name: str, count: int) -> np.ndarray:
    values = _array(outputs, name, count, "iu")
    if values.ndim != 1:
        raise _malformed(f"{name} of rank {values.ndim} instead of 1")
    return values.astype(np.int64)


def _array(outputs: Outputs, name: str, count: int, kinds: str) -> np.ndarray:
    """Returns an output as an array whose dtype is of one of NumPy's `kinds`."""
    items = _items(outputs, name, count)
    try:
        values = np.asarray(items)
    except ValueError as error:
        raise _malformed(f"{name} whose rows differ in length") from error
    if values.dtype.kind not in kinds:
        raise _malformed(f"{name} that is not numbers of its kind")
    return values


def _files(outputs: Outputs, name: str, count: int) -> list[bytes]:
    items = list(_items(outputs, name, count))
    if not all(isinstance(item, bytes) for item in items):
        raise _malformed(f"{name} that is not bytes")
    return items


def _items(outputs: Outputs, name: str, count: int) -> Sequence[Any] | np.ndarray:
    if name not in outputs:
        raise _malformed(f"no {name}, only {', '.join(sorted(outputs)) or 'nothing'}")
    items = outputs[name]
    found = len(items) if getattr(items, "ndim", 1) else 0
    if found != count:
        raise _malformed(f"{found} of {name} for {count} images")
    return items


def _malformed(found: str) -> SfmError:
    return SfmError(
        f"The server's answer has {found}; check that it serves a model exported by sfm_tf."
    )
