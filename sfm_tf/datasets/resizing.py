"""Resizing of images to the size that the settings ask for."""

import dataclasses
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.records.example import ImageRecord


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes by pixel area, so that shrinking averages instead of skipping pixels.

    Args:
        image: Array of uint8 of shape `(height, width, channels)`.
        size: Height and width wanted, in pixels. The sides are scaled independently.

    Returns:
        Array of uint8 of shape `(size, size, channels)`.
    """
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return resized.reshape(size, size, image.shape[-1])


def resize_source(source: ImageSource, size: int) -> ImageSource:
    """Returns `source` with every image resized to `size` pixels in height and width."""
    splits = {name: _resized(read, size) for name, read in source.splits.items()}
    return dataclasses.replace(source, splits=splits, height=size, width=size)


def _resized(
    read: Callable[[], Iterator[ImageRecord]], size: int
) -> Callable[[], Iterator[ImageRecord]]:
    def read_resized() -> Iterator[ImageRecord]:
        for record in read():
            yield dataclasses.replace(record, image=resize_image(record.image, size))

    return read_resized
