import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sfm_tf.datasets.settings import ANOMALY_KINDS
from sfm_tf.records.anomalies import Anomaly, find_anomalies
from sfm_tf.records.example import ImageRecord, encode_record
from sfm_tf.records.schema import Schema
from sfm_tf.records.tfrecords import SplitWriter

_SHARDS = 2
_SIZES = {"train": 6, "test": 4}


def _write_split(records, folder, split, shard_count):
    with SplitWriter(folder, split, shard_count) as writer:
        for record in records:
            writer.write(record)


def _images(split):
    generator = np.random.default_rng(_SIZES[split])
    return generator.integers(0, 256, (_SIZES[split], 2, 3, 1), dtype=np.uint8)


def _record(split, index):
    return ImageRecord(f"{split} {index}", _images(split)[index], index % 2)


def _schema():
    return Schema(2, 3, 1, ("cat", "dog"), dict(_SIZES))


@pytest.fixture
def folder(tmp_path):
    for split, size in _SIZES.items():
        _write_split((_record(split, index) for index in range(size)), tmp_path, split, _SHARDS)
    return tmp_path


def _replace(folder, split, index, serialized):
    """Puts other bytes in place of record `index` of the split; returns shard and place in it."""
    name = f"{split}-{index % _SHARDS:05d}-of-{_SHARDS:05d}.tfrecord"
    path = folder / name
    stored = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    stored[index // _SHARDS] = serialized
    with tf.io.TFRecordWriter(str(path)) as writer:
        for value in stored:
            writer.write(value)
    return name, index // _SHARDS


def _encoded_as(encoded, label=0):
    """A record like those of `encode_record`, with the given file in it."""
    example = tf.train.Example()
    example.features.feature["image/encoded"].bytes_list.value.append(encoded)
    example.features.feature["image/class/label"].int64_list.value.append(label)
    return example.SerializeToString()


def _found(folder, schema=None):
    anomalies = find_anomalies(folder, schema or _schema())
    assert {anomaly.kind for anomaly in anomalies} <= set(ANOMALY_KINDS)
    return [(each.kind, each.split, each.shard, each.index, each.label) for each in anomalies]


def test_clean_data_has_none(folder):
    assert find_anomalies(folder, _schema()) == []


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _copy(split, index, label):
    return encode_record(ImageRecord("copy", _images(split)[index], label))


_TURNED = encode_record(ImageRecord("turned", np.zeros((3, 2, 1), np.uint8), 1))
_HALF = _encoded_as(_png(_images("train")[4, ..., 0])[:-30])
_16_BITS = _encoded_as(_png(np.full((2, 3), 40_000, np.uint16)))
_1_BIT = _encoded_as(_png(np.eye(2, 3, dtype=bool)))


@pytest.mark.parametrize(
    ("split", "index", "serialized", "kind", "label"),
    # Each case has a name: the bytes of a serialized record differ between processes, because a
    # map of protobuf has no order, and pytest-xdist needs the same names on every worker.
    [
        pytest.param("train", 3, _TURNED, "wrong_shape", 1, id="turned"),
        pytest.param("test", 2, _copy("test", 2, -1), "label_out_of_range", -1, id="label_minus_1"),
        pytest.param("test", 2, _copy("test", 2, 2), "label_out_of_range", 2, id="label_2_of_2"),
        pytest.param("train", 5, _encoded_as(b"GIF89a", label=1), "unreadable_image", 1, id="gif"),
        pytest.param("train", 4, _HALF, "unreadable_image", 0, id="half"),
        # Class dog keeps images 1 and 3, so it is not empty.
        pytest.param("train", 5, b"\xff\xff", "unreadable_image", None, id="no_record"),
        pytest.param("train", 5, b"", "unreadable_image", None, id="empty"),
        pytest.param("test", 0, _16_BITS, "value_range", 0, id="16_bits"),
        pytest.param("test", 0, _1_BIT, "value_range", 0, id="1_bit"),
        pytest.param(
            "train",
            5,
            _copy("train", 0, 1),
            "label_conflict",
            1,
            id="copy_across_splits_of_another_class",
        ),
        # A copy within a split is no leak.
        pytest.param("test", 3, _copy("test", 1, 1), None, None, id="copy_within_a_split"),
    ],
)
def test_record_that_is_odd_is_found_where_it_is(folder, split, index, serialized, kind, label):
    name, place = _replace(folder, split, index, serialized)
    assert _found(folder) == ([(kind, split, name, place, label)] if kind else [])


def test_message_says_what_was_expected(folder):
    _replace(folder, "train", 3, _TURNED)
    (anomaly,) = find_anomalies(folder, _schema())
    assert anomaly.message == "Image has shape (3, 2, 1); expected (2, 3, 1)."


@pytest.mark.parametrize("splits", [("train", "test"), ("test", "train")])
def test_leakage_names_both_places_whatever_the_order_of_the_splits(folder, splits):
    name, place = _replace(folder, "test", 3, _copy("train", 3, 1))
    schema = Schema(2, 3, 1, ("cat", "dog"), {split: _SIZES[split] for split in splits})
    message = "Image is also in train: train-00001-of-00002.tfrecord, record 1."
    expected = Anomaly("leakage", message, "test", name, place, 1)
    assert find_anomalies(folder, schema) == [expected]


def test_cut_off_shard(folder):
    path = folder / "test-00001-of-00002.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])
    assert _found(folder) == [
        ("truncated_shard", "test", path.name, 1, None),
        ("count_mismatch", "test", "", None, None),
    ]


def test_missing_shard(folder):
    name = "test-00001-of-00002.tfrecord"
    (folder / name).unlink()
    assert _found(folder) == [
        ("truncated_shard", "test", name, 0, None),
        ("count_mismatch", "test", "", None, None),
        ("empty_class", "test", "", None, 1),
    ]


def test_missing_split(folder):
    schema = Schema(2, 3, 1, ("cat", "dog"), {**_SIZES, "validation": 1})
    assert _found(folder, schema) == [("truncated_shard", "validation", "", None, None)]


def test_empty_class(folder):
    schema = Schema(2, 3, 1, ("cat", "dog", "eel"), dict(_SIZES))
    assert _found(folder, schema) == [
        ("empty_class", "train", "", None, 2),
        ("empty_class", "test", "", None, 2),
    ]


def test_count_mismatch(folder):
    schema = Schema(2, 3, 1, ("cat", "dog"), {"train": 7, "test": 4})
    (anomaly,) = find_anomalies(folder, schema)
    assert anomaly.kind == "count_mismatch"
    assert anomaly.message == "Split 'train' has 6 readable records; expected 7."


def test_listing_is_capped_and_counted(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (130, 3, 2, 1), dtype=np.uint8)
    records = (ImageRecord(str(index), image, 0) for index, image in enumerate(images))
    _write_split(records, tmp_path, "train", 1)
    anomalies = find_anomalies(tmp_path, Schema(2, 3, 1, ("cat",), {"train": 130}))
    assert [anomaly.index for anomaly in anomalies] == [*range(100), None]
    assert anomalies[-1].kind == "wrong_shape"
    assert anomalies[-1].message == "30 more of kind 'wrong_shape' are not listed."
