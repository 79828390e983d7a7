"""Images for a server, checked before they are sent."""

import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from sfm_tf.errors import SfmError

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
    """Returns the bytes of an image file; whether they are an image, the server finds out.

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


def checked_content(content: bytes) -> bytes:
    """Returns the bytes of an image file unless they are more than `LARGEST_FILE`.

    Raises:
        SfmError: If they are.
    """
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
