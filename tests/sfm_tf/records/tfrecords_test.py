import os
import struct

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.records.example import ImageRecord
from sfm_tf.records.schema import Schema
from sfm_tf.records.tfrecords import SplitWriter, load_split, read_pixels


def _records(count, shape=(2, 2, 1)):
    return [
        ImageRecord(f"image {index}", np.full(shape, index, np.uint8), index)
        for index in range(count)
    ]


def _write_split(records, folder, split, shard_count):
    with SplitWriter(folder, split, shard_count) as writer:
        for record in records:
            writer.write(record)


def _labels(path):
    examples = (
        tf.train.Example.FromString(serialized)
        for serialized in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    )
    features = (example.features.feature for example in examples)
    return [feature["image/class/label"].int64_list.value[0] for feature in features]


def test_round_robin(tmp_path):
    _write_split(_records(7), tmp_path, "train", 3)
    found = {path.name: _labels(path) for path in tmp_path.iterdir()}
    assert found == {
        "train-00000-of-00003.tfrecord": [0, 3, 6],
        "train-00001-of-00003.tfrecord": [1, 4],
        "train-00002-of-00003.tfrecord": [2, 5],
    }


def test_an_exception_leaves_nothing(tmp_path):
    def interrupted():
        yield from _records(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _write_split(interrupted(), tmp_path, "train", 2)
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
        _write_split([ImageRecord("a", noise, 0)], tmp_path, "train", 1)
    assert list(tmp_path.iterdir()) == []


_COUNT = 11


def _images(channels=1):
    generator = np.random.default_rng(channels)
    return generator.integers(0, 256, (_COUNT, 3, 4, channels), dtype=np.uint8)


def _stored(folder, shard_count=3, channels=1):
    images = _images(channels)
    records = (ImageRecord(str(index), image, index) for index, image in enumerate(images))
    _write_split(records, folder, "train", shard_count)
    names = tuple(str(index) for index in range(_COUNT))
    return Schema(3, 4, channels, names, {"train": _COUNT}), images


@pytest.mark.parametrize("shard_count", [1, 3, 4, 20])
@pytest.mark.parametrize("channels", [1, 3])
def test_order_of_writing(tmp_path, shard_count, channels):
    schema, expected = _stored(tmp_path, shard_count, channels)
    images, labels = load_split(tmp_path, "train", schema)
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert labels.tolist() == list(range(_COUNT))
    np.testing.assert_allclose(images, expected / 255.0, rtol=0, atol=1e-7)


def test_pixels_are_those_written_in_a_dataset_of_known_size(tmp_path):
    schema, expected = _stored(tmp_path)
    dataset = read_pixels(tmp_path, "train", schema)
    assert dataset.element_spec == (
        tf.TensorSpec((3, 4, 1), tf.uint8),
        tf.TensorSpec((), tf.int64),
    )
    assert int(dataset.cardinality()) == _COUNT
    pixels = np.stack([image for image, _ in dataset.as_numpy_iterator()])
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (5, 5), (100, _COUNT), (0, _COUNT)])
def test_limit_takes_the_first(tmp_path, limit, count):
    schema, _ = _stored(tmp_path)
    images, labels = load_split(tmp_path, "train", schema, limit=limit)
    assert len(images) == count
    assert labels.tolist() == list(range(count))


def test_unknown_split(tmp_path):
    schema, _ = _stored(tmp_path)
    with pytest.raises(SfmError, match="Unknown split 'test'; expected one of train"):
        load_split(tmp_path, "test", schema)


def _flip_a_bit(folder):
    # A record is: length (8 bytes), checksum of it (4), data, checksum of it (4).
    path = folder / "train-00001-of-00003.tfrecord"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", data, 0)
    data[8 + 4 + length + 4 + 12] ^= 1
    path.write_bytes(bytes(data))


def _cut_off(folder):
    path = folder / "train-00002-of-00003.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])


def _remove_all(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip_a_bit, "train-00001-of-00003.tfrecord is damaged at record 1: "),
        # Records 2, 5 and 8 are in this shard.
        (_cut_off, "train-00002-of-00003.tfrecord is damaged at record 2: "),
        (
            lambda folder: (folder / "train-00002-of-00003.tfrecord").write_bytes(b""),
            "has 8 records; expected 11 by its schema",
        ),
        (
            lambda folder: (folder / "train-00001-of-00003.tfrecord").unlink(),
            "train-00001-of-00003.tfrecord is missing",
        ),
        (
            lambda folder: (folder / "train-00000-of-00001.tfrecord").touch(),
            "several ingests, numbered out of 1 and 3",
        ),
        (_remove_all, "No records of split 'train' in "),
    ],
)
def test_damage_is_found_before_the_first_image_and_named(tmp_path, damage, message):
    schema, _ = _stored(tmp_path)
    damage(tmp_path)
    with pytest.raises(SfmError, match=message):
        read_pixels(tmp_path, "train", schema)


@pytest.mark.parametrize("serialized", [b"not a record", b""])
def test_undecodable_record_is_named(tmp_path, serialized):
    schema, _ = _stored(tmp_path)
    path = tmp_path / "train-00001-of-00003.tfrecord"
    stored = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    stored[2] = serialized
    with tf.io.TFRecordWriter(str(path)) as writer:
        for value in stored:
            writer.write(value)
    with pytest.raises(SfmError, match=f"Record 2 of shard {path} cannot be decoded"):
        load_split(tmp_path, "train", schema)


def test_wrong_shape_is_named(tmp_path):
    _stored(tmp_path)
    schema = Schema(4, 4, 1, ("a",), {"train": _COUNT})
    with pytest.raises(SfmError, match=r"Record 0 of shard .*train-00000-of-00003"):
        load_split(tmp_path, "train", schema)
