"""Statistics of ingested images, computed from the shards themselves."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from sfm_tf.errors import SfmError
from sfm_tf.records.example import pixel_digest
from sfm_tf.records.schema import Schema
from sfm_tf.records.tfrecords import read_pixels
from sfm_tf.settings import PIXEL_LEVELS

STATISTICS_FILE = "statistics.json"
_BATCH = 256


@dataclasses.dataclass
class _Totals:
    """Running sums over the images of a split; integers, so that they are exact."""

    class_counts: np.ndarray
    sums: np.ndarray
    square_sums: np.ndarray
    minimum: int = 255
    maximum: int = 0
    digests: set[str] = dataclasses.field(default_factory=set)

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Adds uint8 images of shape `(batch, height, width, channels)` and their labels."""
        wide = images.astype(np.int64)
        self.class_counts += np.bincount(labels, minlength=len(self.class_counts))
        self.sums += wide.sum(axis=(0, 1, 2))
        self.square_sums += (wide**2).sum(axis=(0, 1, 2))
        self.minimum = min(self.minimum, int(images.min()))
        self.maximum = max(self.maximum, int(images.max()))
        self.digests.update(pixel_digest(image) for image in images)

    def summary(self, pixels_per_image: int, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Returns the statistics of all images added."""
        count = int(self.class_counts.sum())
        pixels = count * pixels_per_image
        sums = [int(value) for value in self.sums]
        # In exact integers: E[x^2] - E[x]^2 in floats would cancel where images are near constant.
        variances = [
            (pixels * int(squares) - total**2) / pixels**2
            for total, squares in zip(sums, self.square_sums, strict=True)
        ]
        return {
            "count": count,
            "class_counts": dict(zip(class_names, self.class_counts.tolist(), strict=True)),
            "mean": [total / pixels / PIXEL_LEVELS for total in sums],
            "std": [math.sqrt(variance) / PIXEL_LEVELS for variance in variances],
            "min": self.minimum / PIXEL_LEVELS,
            "max": self.maximum / PIXEL_LEVELS,
            "exact_duplicates": count - len(self.digests),
        }


def _split_statistics(folder: pathlib.Path, split: str, schema: Schema) -> dict[str, Any]:
    class_count = len(schema.class_names)
    totals = _Totals(
        class_counts=np.zeros(class_count, np.int64),
        sums=np.zeros(schema.channels, np.int64),
        square_sums=np.zeros(schema.channels, np.int64),
    )
    for images, labels in read_pixels(folder, split, schema).batch(_BATCH).as_numpy_iterator():
        if labels.min() < 0 or labels.max() >= class_count:
            wrong = labels[(labels < 0) | (labels >= class_count)][0]
            raise SfmError(
                f"Split {split!r} in {folder} has label {wrong}; expected 0 to {class_count - 1}."
            )
        totals.add(images, labels)
    return totals.summary(schema.height * schema.width, schema.class_names)


def compute_statistics(folder: pathlib.Path, schema: Schema) -> dict[str, Any]:
    """Computes the statistics of every split, in one pass and without holding the images.

    Args:
        folder: Folder of the shards.
        schema: Schema of the dataset.

    Returns:
        For each split a dictionary that JSON can hold: `count`; `class_counts` by class name;
        `mean` and `std` (of the population) per channel, `min` and `max`, all in units of [0, 1];
        `exact_duplicates`, the number of images whose pixels an image before them has too.

    Raises:
        SfmError: If a shard is missing or damaged, or a label is no class.
    """
    return {split: _split_statistics(folder, split, schema) for split in schema.split_sizes}
