import dataclasses

import numpy as np
import pytest

from sfm_tf.datasets.source import ImageSource
from sfm_tf.records.example import ImageRecord


def _read():
    yield ImageRecord("a", np.zeros((2, 3, 1), np.uint8), 0)


def test_every_call_reads_anew():
    source = ImageSource(("cat",), {"train": _read}, height=2, width=3, channels=1)
    for _ in range(2):
        assert [record.key for record in source.splits["train"]()] == ["a"]


def test_is_frozen():
    source = ImageSource(("cat",), {"train": _read}, height=2, width=3, channels=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.height = 3
