import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.records.example import ImageRecord
from sfm_tf.records.reading import load_split, read_pixels, read_split
from sfm_tf.records.schema import Schema
from sfm_tf.records.writing import write_split

_COUNT = 11


def _images(channels=1):
    generator = np.random.default_rng(channels)
    return generator.integers(0, 256, (_COUNT, 3, 4, channels), dtype=np.uint8)


def _stored(folder, shard_count=3, channels=1):
    images = _images(channels)
    records = (ImageRecord(str(index), image, index) for index, image in enumerate(images))
    write_split(records, folder, "train", shard_count)
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


def test_dataset_is_unbatched_in_unit_range(tmp_path):
    schema, expected = _stored(tmp_path)
    dataset = read_split(tmp_path, "train", schema)
    assert dataset.element_spec == (
        tf.TensorSpec((3, 4, 1), tf.float32),
        tf.TensorSpec((), tf.int64),
    )
    assert int(dataset.cardinality()) == _COUNT
    images = np.stack([image for image, _ in dataset.as_numpy_iterator()])
    np.testing.assert_allclose(images, expected / 255.0, rtol=0, atol=1e-7)


def test_pixels_are_those_written(tmp_path):
    schema, expected = _stored(tmp_path)
    pixels = [image for image, _ in read_pixels(tmp_path, "train", schema).as_numpy_iterator()]
    assert np.stack(pixels).dtype == np.uint8
    np.testing.assert_array_equal(np.stack(pixels), expected)


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (5, 5), (100, _COUNT), (0, _COUNT)])
def test_limit_takes_the_first(tmp_path, limit, count):
    schema, _ = _stored(tmp_path)
    images, labels = load_split(tmp_path, "train", schema, limit=limit)
    assert len(images) == count
    assert labels.tolist() == list(range(count))


def test_unknown_split(tmp_path):
    schema, _ = _stored(tmp_path)
    with pytest.raises(SfmError, match="Unknown split 'test'; expected one of train"):
        read_split(tmp_path, "test", schema)


def test_missing_shard(tmp_path):
    schema, _ = _stored(tmp_path)
    (tmp_path / "train-00001-of-00003.tfrecord").unlink()
    with pytest.raises(SfmError, match="train-00001-of-00003.tfrecord is missing"):
        read_split(tmp_path, "train", schema)


def test_damaged_shard_is_found_before_the_first_image(tmp_path):
    schema, _ = _stored(tmp_path)
    path = tmp_path / "train-00002-of-00003.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])
    # Records 2, 5 and 8 are in this shard.
    with pytest.raises(SfmError, match=f"{path} is damaged at record 2"):
        read_split(tmp_path, "train", schema)


def test_lost_records_are_counted(tmp_path):
    schema, _ = _stored(tmp_path)
    (tmp_path / "train-00002-of-00003.tfrecord").write_bytes(b"")
    with pytest.raises(SfmError, match="has 8 records; expected 11 by its schema"):
        read_split(tmp_path, "train", schema)


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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
