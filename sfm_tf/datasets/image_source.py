"""The common interface of all datasets."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from sfm_tf.records.example import ImageRecord


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """A dataset that was found and can be read.

    Attributes:
        class_names: Name of class `i` at position `i`.
        splits: For `train`, and `validation` and `test` if the dataset has them, a function that
            starts reading it. Reading yields the same images in the same order every time, and in
            that order the classes are mixed, so that the first images are a fair sample.
        height: Pixels from top to bottom of the images.
        width: Pixels from left to right of the images.
        channels: 1 for grey images, 3 for RGB.
        is_stratified: Whether the splits that the dataset lacks are taken from train class by
            class, which takes a second reading; else by the hash of each image, as those of the
            datasets with published figures are.
        problems: A sentence for each thing that is wrong with the dataset. Reading leaves out an
            image that cannot be read and adds it here, so that all are reported together.
        passed_over: How many files and folders of file managers were left out.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Callable[[], Iterator[ImageRecord]]]
    height: int
    width: int
    channels: int
    is_stratified: bool = False
    problems: list[str] = dataclasses.field(default_factory=list)
    passed_over: int = 0
