import os

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.records.example import ImageRecord
from sfm_tf.records.writing import SplitWriter, write_split


def _records(count, shape=(2, 2, 1)):
    return [
        ImageRecord(f"image {index}", np.full(shape, index, np.uint8), index)
        for index in range(count)
    ]


def _labels(path):
    examples = (
        tf.train.Example.FromString(serialized)
        for serialized in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    )
    return [
        example.features.feature["image/class/label"].int64_list.value[0] for example in examples
    ]


def test_round_robin(tmp_path):
    assert write_split(_records(7), tmp_path, "train", 3) == 7
    found = {path.name: _labels(path) for path in tmp_path.iterdir()}
    assert found == {
        "train-00000-of-00003.tfrecord": [0, 3, 6],
        "train-00001-of-00003.tfrecord": [1, 4],
        "train-00002-of-00003.tfrecord": [2, 5],
    }


def test_same_records_make_same_files(tmp_path):
    for folder in ("a", "b"):
        write_split(iter(_records(9)), tmp_path / folder, "test", 2)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("a", "b")
    )
    assert len(first) == 2
    assert first == second


def test_more_shards_than_records(tmp_path):
    assert write_split(_records(1), tmp_path, "test", 2) == 1
    assert _labels(tmp_path / "test-00001-of-00002.tfrecord") == []


def test_wrong_shape_names_the_image_and_leaves_nothing(tmp_path):
    odd = ImageRecord("odd.png", np.zeros((2, 3, 1), np.uint8), 0)
    message = r"Image 'odd.png' has shape \(2, 3, 1\); expected \(2, 2, 1\)"
    with pytest.raises(SfmError, match=message):
        write_split([*_records(2), odd], tmp_path, "train", 2)
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_its_name_before_the_end(tmp_path):
    with SplitWriter(tmp_path, "train", 1) as writer:
        for record in _records(3):
            writer.write(record)
        assert not list(tmp_path.glob("*.tfrecord"))
    assert writer.count == 3
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000-of-00001.tfrecord"]


def test_missing_folder_is_an_error(tmp_path):
    with (
        pytest.raises(SfmError, match=r"Cannot open 1 shards in .*absent"),
        SplitWriter(tmp_path / "absent", "train", 1),
    ):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("size", [2, 600])
def test_full_disk_surfaces(tmp_path, size):
    """Small data is only written out on closing, large data while writing."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 1), dtype=np.uint8)
    temporary = tmp_path / f".train-00000-of-00001.tfrecord.{os.getpid()}.tmp"
    temporary.symlink_to("/dev/full")
    with pytest.raises(tf.errors.ResourceExhaustedError, match="No space left on device"):
        write_split([ImageRecord("a", noise, 0)], tmp_path, "train", 1)
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
