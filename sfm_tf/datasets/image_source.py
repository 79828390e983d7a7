"""The common interface of all datasets."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from sfm_tf.records.example import ImageRecord


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """A dataset that was found and can be read.

    Attributes:
        class_names: Name of class `i` at position `i`.
        splits: For `train`, and `test` if the dataset has it, a function that starts reading it.
            Reading yields the same images in the same order every time, and in that order the
            classes are mixed, so that the first images are a fair sample.
        height: Pixels from top to bottom of the images.
        width: Pixels from left to right of the images.
        channels: 1 for grey images, 3 for RGB.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Callable[[], Iterator[ImageRecord]]]
    height: int
    width: int
    channels: int
