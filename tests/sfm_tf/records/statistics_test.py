import json

import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.records.example import ImageRecord
from sfm_tf.records.schema import Schema
from sfm_tf.records.statistics import compute_statistics
from sfm_tf.records.tfrecords import SplitWriter


def _write(folder, split, images, labels):
    records = (
        ImageRecord(str(index), image, label)
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    )
    with SplitWriter(folder, split, 2) as writer:
        for record in records:
            writer.write(record)


def test_equals_numpy_over_all_pixels(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(3, 250, (600, 4, 5, 3), dtype=np.uint8)
    images[..., 1] //= 2
    labels = generator.integers(0, 2, 600)
    _write(tmp_path, "train", images, labels)
    schema = Schema(4, 5, 3, ("cat", "dog", "eel"), {"train": 600})

    statistics = compute_statistics(tmp_path, schema)["train"]

    scaled = images / 255.0
    assert statistics["count"] == 600
    ones = int(labels.sum())
    assert statistics["class_counts"] == {"cat": 600 - ones, "dog": ones, "eel": 0}
    np.testing.assert_allclose(statistics["mean"], scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(statistics["std"], scaled.std(axis=(0, 1, 2)), rtol=1e-12)
    assert statistics["min"] == scaled.min()
    assert statistics["max"] == scaled.max()
    assert statistics["exact_duplicates"] == 0


def test_by_hand(tmp_path):
    """Values 0, 0, 255, 255: mean 1/2, standard deviation 1/2."""
    image = np.array([0, 0, 255, 255], np.uint8).reshape(2, 2, 1)
    _write(tmp_path, "train", [image] * 3 + [image.T.reshape(2, 2, 1)], [0] * 4)
    _write(tmp_path, "test", [image], [0])
    schema = Schema(2, 2, 1, ("square",), {"train": 4, "test": 1})
    expected = {"mean": [0.5], "std": [0.5], "min": 0.0, "max": 1.0}
    statistics = compute_statistics(tmp_path, schema)
    assert json.loads(json.dumps(statistics, allow_nan=False)) == {
        "train": {"count": 4, "class_counts": {"square": 4}, "exact_duplicates": 2, **expected},
        "test": {"count": 1, "class_counts": {"square": 1}, "exact_duplicates": 0, **expected},
    }


def test_constant_images_have_no_spread(tmp_path):
    _write(tmp_path, "train", np.full((5, 8, 8, 1), 77, np.uint8), [0] * 5)
    statistics = compute_statistics(tmp_path, Schema(8, 8, 1, ("flat",), {"train": 5}))["train"]
    assert statistics["std"] == [0.0]
    assert statistics["mean"] == [pytest.approx(77 / 255, rel=1e-15)]


@pytest.mark.parametrize("label", [-1, 2])
def test_label_that_is_no_class(tmp_path, label):
    _write(tmp_path, "train", np.zeros((2, 2, 2, 1), np.uint8), [0, label])
    with pytest.raises(SfmError, match=rf"has label {label}; expected 0 to 1\."):
        compute_statistics(tmp_path, Schema(2, 2, 1, ("a", "b"), {"train": 2}))
