"""The 1,797 handwritten digits that come with scikit-learn: 8x8 grey, no download, no test split.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits

from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.records.example import ImageRecord
from sfm_tf.settings import PIXEL_LEVELS

_LARGEST_VALUE = 16.0


def _digits() -> Iterator[ImageRecord]:
    dataset = load_digits()
    images = np.rint(dataset.images * (PIXEL_LEVELS / _LARGEST_VALUE)).astype(np.uint8)
    keys = [f"digit {index:04d}" for index in range(len(images))]
    # The file is ordered by writer; by hash, the first images are of all of them.
    for index in sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest()):
        yield ImageRecord(keys[index], images[index, ..., np.newaxis], int(dataset.target[index]))


def open_source(config: DataConfig) -> ImageSource:
    """Returns the digits; they depend on no setting."""
    del config
    class_names = tuple(str(digit) for digit in range(10))
    return ImageSource(class_names, {"train": _digits}, height=8, width=8, channels=1)
