"""Image files as clients send them, and what ingest makes of them.

A server gets files as a camera or a web page left them, of other sizes than the model's images. The
files here are made of the images that a model was evaluated on, since records keep no other.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from sfm_tf.datasets.decoding import decode_image
from sfm_tf.datasets.resizing import resize_images
from sfm_tf.settings import PIXEL_LEVELS

_Shape = tuple[int, int, int]


def _deep_png(levels: np.ndarray) -> tf.Tensor:
    # The lower 8 bits are to be cut; rounded, they would make the next level.
    return tf.io.encode_png(levels.astype(np.uint16) * 256 + 255)


def _grey_png(levels: np.ndarray) -> tf.Tensor:
    return tf.io.encode_png(levels[..., :1])


_jpeg = functools.partial(tf.io.encode_jpeg, quality=90, chroma_downsampling=True)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of file: its height and width, where the model's are 1, and its format."""

    height: float
    width: float
    encode: Callable[[np.ndarray], tf.Tensor]


_KINDS = (
    _Kind(1.5, 1.25, tf.io.encode_png),
    _Kind(0.75, 0.5, tf.io.encode_png),
    _Kind(2.0, 2.5, _jpeg),
    _Kind(0.6, 1.4, _jpeg),
    _Kind(1.0, 1.0, tf.io.encode_png),
    _Kind(1.0, 1.3, _deep_png),
    _Kind(1.7, 1.0, _grey_png),
)


def make_files(images: np.ndarray) -> list[bytes]:
    """Makes a file of each image: in turn larger and smaller ones, of PNG and of JPEG.

    Sides change by leaving pixels out or repeating them, which has nothing in common with the rule
    by which the files are to be resized.

    Args:
        images: Uint8 of shape `(count, height, width, channels)`, channels 1 or 3.

    Returns:
        The contents of the files.
    """
    kinds = [_KINDS[number % len(_KINDS)] for number in range(len(images))]
    return [_make(image, kind) for image, kind in zip(images, kinds, strict=True)]


def _make(image: np.ndarray, kind: _Kind) -> bytes:
    rows, columns = (
        np.arange(max(1, round(factor * side))) * side // max(1, round(factor * side))
        for factor, side in zip((kind.height, kind.width), image.shape, strict=False)
    )
    return kind.encode(image[rows][:, columns]).numpy()


def ingest_files(files: Sequence[bytes], image_shape: _Shape) -> np.ndarray:
    """Decodes and resizes files as ingest does.

    Args:
        files: PNG or JPEG files; grey ones, if the shape has one channel.
        image_shape: Height, width and channels (1 or 3) of a model's images.

    Returns:
        Images as a model gets them in training, float32 in [0, 1] of shape `(count,
        *image_shape)`.

    Raises:
        SfmError: If one cannot be decoded.
    """
    *size, channels = image_shape
    levels = [
        resize_images(decode_image(file, f"file {number}")[None], size)[0, ..., :channels]
        for number, file in enumerate(files)
    ]
    return np.stack(levels).astype(np.float32) / np.float32(PIXEL_LEVELS)
