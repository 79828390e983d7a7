import collections

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sfm_tf.datasets.digits import open_source
from sfm_tf.datasets.settings import DataConfig


@pytest.fixture(scope="module")
def records():
    return list(open_source(DataConfig()).splits["train"]())


def test_describes_itself(records):
    source = open_source(DataConfig())
    assert source.class_names == tuple("0123456789")
    assert (source.height, source.width, source.channels) == (8, 8, 1)
    assert list(source.splits) == ["train"]
    assert {record.image.shape for record in records} == {(8, 8, 1)}
    assert {record.image.dtype for record in records} == {np.dtype(np.uint8)}


def test_is_the_dataset_of_scikit_learn(records):
    """0..16 is scaled to 0..255 and rounded: 1 to 15.94, 8 to 127.5 (to even: 128), 16 to 255."""
    expected = load_digits()
    assert sorted(record.key for record in records) == [f"digit {i:04d}" for i in range(1797)]
    levels = {0: 0, 1: 16, 2: 32, 3: 48, 4: 64, 5: 80, 6: 96, 7: 112, 8: 128}
    levels |= {16 - value: 255 - level for value, level in levels.items() if value != 8}
    table = np.array([levels[value] for value in range(17)])
    for record in records:
        index = int(record.key.split()[1])
        assert record.label == expected.target[index]
        np.testing.assert_array_equal(
            record.image[..., 0], table[expected.images[index].astype(int)]
        )


def test_order_is_fixed_and_mixes_classes_and_writers(records):
    again = [record.key for record in open_source(DataConfig()).splits["train"]()]
    assert [record.key for record in records] == again
    counts = collections.Counter(record.label for record in records[:200])
    assert len(counts) == 10
    assert max(counts.values()) < 40
    indices = [int(record.key.split()[1]) for record in records[:200]]
    assert 700 < np.mean(indices) < 1100
