"""What a client can ask of a served model, whatever the protocol."""

import abc
import dataclasses
import math
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from sfm_tf.errors import SfmError

FIRST_WAIT_SECONDS = 0.2
"""About how long a client waits before it sends a request again; each further wait is longer."""

LONGEST_WAIT_SECONDS = 5.0

LARGEST_ANSWER = 256 * 2**20
"""Bytes of an answer; 32 explained images of 224x224x3 are up to 225 MB of JSON."""

LONGEST_MESSAGE = 500
"""Characters kept of a server's message; TensorFlow Serving repeats a whole bad request in it."""


class ServerError(SfmError):
    """A request that failed at the server or on the way.

    Attributes:
        code: HTTP status, such as "404", or gRPC status, such as "NOT_FOUND"; empty if no answer
            came.
    """

    def __init__(self, message: str, code: str = "") -> None:
        """Keeps the message, which must be one line."""
        super().__init__(message)
        self.code = code


def one_line(text: str) -> str:
    """Returns a server's text as one line that is safe to print, cut off where it is long.

    Args:
        text: Whatever the server sent; control characters could steer a terminal.
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}..."


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


_INTEGERS, _NUMBERS, _FILES = "iu", "fiu", "O"
_OUTPUTS = {
    "class_id": (_INTEGERS, 1),
    "status": (_INTEGERS, 1),
    "logits": (_NUMBERS, 2),
    "probabilities": (_NUMBERS, 2),
    "mask": (_NUMBERS, 4),
    "masked_image": (_NUMBERS, 4),
    "defended_image": (_NUMBERS, 4),
    # TensorFlow Serving's REST interface spoils bytes in outputs that are not named so.
    "mask_png_bytes": (_FILES, 1),
    "masked_png_bytes": (_FILES, 1),
    "defended_png_bytes": (_FILES, 1),
}
"""The kind of NumPy dtype and the rank of each output."""


def read_answers(outputs: Outputs, count: int) -> list[Answer]:
    """Returns the answers in the outputs of `serving_default` or `predict_bytes`.

    Args:
        outputs: `logits`, `probabilities`, `class_id` and, of `predict_bytes`, `status`.
        count: Images sent.

    Raises:
        SfmError: If an output is missing, holds a NaN or does not fit the others.
    """
    probabilities, logits, class_ids = (
        _output(outputs, name, count) for name in ("probabilities", "logits", "class_id")
    )
    statuses = np.zeros(count, np.int64)
    if "status" in outputs:
        statuses = _output(outputs, "status", count)
    if logits.shape != probabilities.shape:
        raise _malformed(f"{logits.shape[1]} logits and {probabilities.shape[1]} probabilities")
    if np.any(probabilities < 0) or np.any(probabilities > 1 + ROUNDING):
        raise _malformed("a probability outside [0, 1]")
    lowest = np.where(statuses == CLASSIFIED, 0, NO_CLASS)
    highest = np.where(statuses == CLASSIFIED, probabilities.shape[1] - 1, NO_CLASS)
    if np.any(class_ids < lowest) or np.any(class_ids > highest):
        raise _malformed("a class_id that is not one of the classes, or does not fit its status")
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
    class_ids = _output(outputs, "class_id", count).tolist()
    others = [
        _output(outputs, name, count)
        for name, (kind, _) in _OUTPUTS.items()
        if name.startswith(("mask", "defended"))
    ]
    return [Explanation(*values) for values in zip(class_ids, *others, strict=True)]


def _output(outputs: Outputs, name: str, count: int) -> np.ndarray:
    """Returns an output as float32, as int64, or as an object array of bytes."""
    kinds, rank = _OUTPUTS[name]
    if name not in outputs:
        raise _malformed(f"no {name}, only {', '.join(sorted(outputs)) or 'nothing'}")
    try:
        values = np.asarray(outputs[name], dtype=object if kinds == _FILES else None)
    except ValueError as error:
        raise _malformed(f"{name} whose rows differ in length") from error
    if values.dtype.kind not in kinds:
        raise _malformed(f"{name} of type {values.dtype}")
    if values.ndim != rank or len(values) != count:
        raise _malformed(f"{name} of shape {values.shape} for {count} images")
    if kinds == _FILES:
        if not all(isinstance(value, bytes) for value in values):
            raise _malformed(f"{name} that is not bytes")
        return values
    values = values.astype(np.int64 if kinds == _INTEGERS else np.float32)
    if not np.all(np.isfinite(values)):
        raise _malformed(f"a value of {name} that is not finite")
    return values


def _malformed(found: str) -> SfmError:
    return SfmError(
        f"The server's answer has {found}; check that it serves a model exported by sfm_tf."
    )


LARGEST_FILE = 16 * 2**20
"""Bytes of the largest image file that is sent."""

LARGEST_REQUEST = 32 * 2**20
"""Bytes of images in one request; base64, which makes a third more of them, leaves it below the 64
MiB that `sfm_tf`'s own server accepts."""

BYTES_PER_VALUE = 24
"""Most bytes that JSON takes for a float32 and the comma, space and brackets after it."""

LARGEST_BATCH = 1024
"""Images in one request."""

Item = TypeVar("Item")


class UnsendableFileError(SfmError):
    """A file that is not sent, for a `reason` of a few words."""

    def __init__(self, path: pathlib.Path, reason: str) -> None:
        """Says which file, and why."""
        super().__init__(f"Cannot send {str(path)!r}: {reason}.")
        self.reason = reason


def check_batch_size(batch_size: int) -> None:
    """Raises `SfmError` unless a request may hold so many images."""
    if not 1 <= batch_size <= LARGEST_BATCH:
        raise SfmError(f"Invalid batch_size {batch_size}; expected 1 to {LARGEST_BATCH}.")


def checked_images(images: np.ndarray) -> np.ndarray:
    """Returns images as float32.

    Args:
        images: Floats in [0, 1] of shape `(count, height, width, channels)`.

    Raises:
        SfmError: If the dtype, the rank or a value is another.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype.kind != "f":
        raise SfmError(
            f"Invalid images of dtype {images.dtype} and shape {images.shape}; expected float32 in "
            "[0, 1] of shape (count, height, width, channels)."
        )
    images = images.astype(np.float32, copy=False)
    # Written so that a NaN, which compares as false, is refused too.
    if not np.all((images >= 0) & (images <= 1)):
        raise SfmError("Invalid images with a value outside [0, 1]; divide 8-bit values by 255.")
    return images


def read_image_file(path: pathlib.Path) -> bytes:
    """Returns the bytes of an image file; the server finds out whether they are an image.

    Args:
        path: A file of at most `LARGEST_FILE` bytes.

    Raises:
        UnsendableFileError: If it is larger, no regular file, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnsendableFileError(path, "no regular file")
            # What a file holds, not what its size was, counts: it may be growing.
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UnsendableFileError(path, error.strerror or str(error)) from error
    if len(content) > LARGEST_FILE:
        raise UnsendableFileError(path, f"over {LARGEST_FILE:,} bytes")
    return content


def _open_at_once(path: str, flags: int) -> int:
    # A pipe would otherwise block until somebody writes into it; Windows has no such flag.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _checked_content(content: bytes) -> bytes:
    if len(content) > LARGEST_FILE:
        raise SfmError(f"Cannot send {len(content):,} bytes; expected at most {LARGEST_FILE:,}.")
    return content


def batches(
    items: Iterable[Item], batch_size: int, size_of: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Splits items into requests, in order, holding one request and one item at a time.

    Args:
        items: What is sent.
        batch_size: Most items in one request.
        size_of: Bytes of an item.

    Yields:
        At least one item; of several, at most `batch_size` and `LARGEST_REQUEST` bytes.
    """
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == batch_size or size + size_of(item) > LARGEST_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += size_of(item)
    if batch:
        yield batch


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """State of one version of a model.

    Attributes:
        version: Its number.
        state: TensorFlow Serving's word: START, LOADING, AVAILABLE, UNLOADING or END.
        error_message: Why it could not be loaded; empty if it could.
    """

    version: int
    state: str
    error_message: str


@dataclasses.dataclass(frozen=True, eq=False)
class ModelClient(abc.ABC):
    """Classifies and explains images with a served model.

    Images are sent in requests of at most `batch_size`, fewer where they are large, one after the
    other. A request is sent again while the server is busy or away. Threads may share a client.

    Attributes:
        server: Address of the server.
        model_name: Name the server knows the model by.
        version: Version asked for; None for the one the server chooses, its latest.
        batch_size: Most images in one request.
        attempts: How often a request is sent at most; 1 never repeats it, and gRPC stops at 5.
        deadline_seconds: Time for a request with all its repetitions and pauses.
    """

    server: str
    model_name: str
    version: int | None = None
    batch_size: int = 32
    attempts: int = 5
    deadline_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Raises `SfmError` if a setting is not usable."""
        check_batch_size(self.batch_size)
        if not self.model_name:
            raise SfmError("Empty model_name; expected the name that the server knows.")
        if self.version is not None and self.version < 0:
            raise SfmError(f"Invalid version {self.version}; expected 0 or more.")
        if self.attempts < 1 or not self.deadline_seconds > 0:
            raise SfmError(
                f"Invalid attempts={self.attempts}, deadline_seconds={self.deadline_seconds}; "
                "expected at least 1 attempt and more than 0 seconds."
            )

    def classify(self, images: np.ndarray) -> list[Answer]:
        """Classifies images of the size the model was trained with.

        Args:
            images: Float32 in [0, 1] of shape `(count, height, width, channels)`.

        Returns:
            An answer per image.

        Raises:
            SfmError: If the images are not such, or no usable answer comes.
        """
        answers: list[Answer] = []
        for batch in self._image_batches(images):
            outputs = self._predict("serving_default", "images", batch)
            answers += read_answers(outputs, len(batch))
        return answers

    def classify_bytes(self, contents: Iterable[bytes]) -> list[Answer]:
        """Classifies PNG and JPEG files of any size; the server resizes them.

        Args:
            contents: The bytes of each file, at most `LARGEST_FILE`.

        Returns:
            An answer per file, whose status says whether it could be classified.

        Raises:
            SfmError: If a file is larger, or no usable answer comes.
        """
        answers: list[Answer] = []
        for batch in batches(map(_checked_content, contents), self.batch_size, len):
            outputs = self._predict("predict_bytes", "image_bytes", batch)
            answers += read_answers(outputs, len(batch))
        return answers

    def classify_files(self, paths: Iterable[str | pathlib.Path]) -> list[Answer]:
        """As `classify_bytes`, for files by their paths; for many, see `classify_folder`.

        Raises:
            SfmError: If a file cannot be read or is too large, or no usable answer comes.
        """
        return self.classify_bytes(read_image_file(pathlib.Path(path)) for path in paths)

    def explain(self, images: np.ndarray) -> list[Explanation]:
        """Shows what the defence makes of images.

        Args:
            images: As for `classify`.

        Returns:
            An explanation per image.

        Raises:
            SfmError: If the images are not such, or no usable answer comes.
        """
        explanations: list[Explanation] = []
        for batch in self._image_batches(images):
            outputs = self._predict("explain", "images", batch)
            explanations += read_explanations(outputs, len(batch))
        return explanations

    def status(self) -> tuple[VersionStatus, ...]:
        """Returns the state of each version, or of the one asked for.

        Raises:
            SfmError: If no usable answer comes.
        """
        message = self._get_status()
        try:
            return tuple(
                VersionStatus(
                    int(entry["version"]),
                    str(entry["state"]),
                    str(entry.get("status", {}).get("error_message", "")),
                )
                for entry in message["model_version_status"]
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _malformed("no status of the model") from error

    def metadata(self) -> Mapping[str, Any]:
        """Returns the signatures by name, each TensorFlow's `SignatureDef` as JSON.

        Raises:
            SfmError: If no usable answer comes.
        """
        message = self._get_metadata()
        try:
            return dict(message["metadata"]["signature_def"]["signature_def"])
        except (LookupError, TypeError, ValueError) as error:
            raise _malformed("no metadata of the model") from error

    def _image_batches(self, images: np.ndarray) -> Iterator[np.ndarray]:
        checked = checked_images(images)
        bytes_per_image = BYTES_PER_VALUE * math.prod(checked.shape[1:])
        return map(np.stack, batches(checked, self.batch_size, lambda image: bytes_per_image))

    @abc.abstractmethod
    def _predict(
        self, signature_name: str, input_name: str, values: np.ndarray | Sequence[bytes]
    ) -> Outputs:
        """Returns the outputs of a signature with one input, for at least one image."""

    @abc.abstractmethod
    def _get_status(self) -> Any:
        """Returns a `GetModelStatusResponse` as JSON."""

    @abc.abstractmethod
    def _get_metadata(self) -> Any:
        """Returns a `GetModelMetadataResponse` as JSON."""
