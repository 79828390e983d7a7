"""Resizing of images to the size that the settings ask for: the same for ingest and serving.

`resize_pixels` is TensorFlow's own ops, so that the signature of a served model that takes files
contains what ingest did to the images that the model was trained on.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.records.example import ImageRecord

_MOST_PIXELS_AT_ONCE = 250_000
"""Most pixels of several images that one call resizes; a call for each would take longer."""


def resize_pixels(pixels: tf.Tensor, size: Sequence[int] | tf.Tensor) -> tf.Tensor:
    """Resizes 8-bit images in a graph: bilinear with antialiasing, rounded to the nearest level.

    A pixel of the result is the mean of the pixels around its place, weighted by a triangle that
    reaches over one pixel of the coarser of the two grids. These are the weights of Pillow's
    `BILINEAR`. Halves are rounded to even levels.

    Args:
        pixels: Uint8 of shape `(height, width, channels)` or `(batch, height, width, channels)`.
        size: Height and width wanted, in pixels. The sides are scaled independently.

    Returns:
        Uint8 of shape `(*size, channels)`, with `batch` before it if there was one.
    """
    resized = tf.image.resize(pixels, size, tf.image.ResizeMethod.BILINEAR, antialias=True)
    return tf.cast(tf.round(resized), tf.uint8)


_compiled = tf.function(
    resize_pixels,
    input_signature=[
        tf.TensorSpec((None, None, None, None), tf.uint8),
        tf.TensorSpec((2,), tf.int32),
    ],
)


def resize_images(images: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes images as `resize_pixels` does.

    Args:
        images: Array of uint8 of shape `(batch, height, width, channels)`.
        size: Height and width wanted, in pixels.

    Returns:
        Array of uint8 of shape `(batch, *size, channels)`.
    """
    with tf.device("/CPU:0"):
        return _compiled(images, size).numpy()


def resize_source(source: ImageSource, size: int) -> ImageSource:
    """Returns `source` with every image resized to `size` pixels in height and width."""
    splits = {
        name: functools.partial(_read_resized, read, size) for name, read in source.splits.items()
    }
    return dataclasses.replace(source, splits=splits, height=size, width=size)


def _read_resized(read: Callable[[], Iterator[ImageRecord]], size: int) -> Iterator[ImageRecord]:
    for records in _neighbours_of_one_shape(read()):
        images = resize_images(np.stack([record.image for record in records]), (size, size))
        for record, image in zip(records, images, strict=True):
            yield dataclasses.replace(record, image=image)


def _neighbours_of_one_shape(records: Iterator[ImageRecord]) -> Iterator[list[ImageRecord]]:
    gathered: list[ImageRecord] = []
    for record in records:
        if gathered and (
            record.image.shape != gathered[0].image.shape
            or (len(gathered) + 1) * record.image[..., 0].size > _MOST_PIXELS_AT_ONCE
        ):
            yield gathered
            gathered = []
        gathered.append(record)
    if gathered:
        yield gathered
