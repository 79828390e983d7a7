import struct

import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.records import shards


def _write(path, values):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for value in values:
            writer.write(value)


def test_name():
    assert shards.shard_name("train", 3, 12) == "train-00003-of-00012.tfrecord"


def test_finds_all_in_order(tmp_path):
    for index in (2, 0, 1):
        (tmp_path / f"test-0000{index}-of-00003.tfrecord").touch()
    (tmp_path / "train-00000-of-00001.tfrecord").touch()
    names = [path.name for path in shards.find_shards(tmp_path, "test")]
    assert names == [f"test-0000{index}-of-00003.tfrecord" for index in range(3)]


def test_no_shards(tmp_path):
    with pytest.raises(SfmError, match=f"No records of split 'train' in {tmp_path}"):
        shards.find_shards(tmp_path, "train")


def test_missing_shard_is_named(tmp_path):
    (tmp_path / "train-00000-of-00002.tfrecord").touch()
    with pytest.raises(SfmError, match="train-00001-of-00002.tfrecord is missing"):
        shards.find_shards(tmp_path, "train")


def test_two_numberings(tmp_path):
    (tmp_path / "train-00000-of-00002.tfrecord").touch()
    (tmp_path / "train-00000-of-00001.tfrecord").touch()
    with pytest.raises(SfmError, match=r"numbered of \[1, 2\]; expected one numbering"):
        shards.find_shards(tmp_path, "train")


def test_counts_over_shards(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for path, values in zip(paths, [[b"1", b"2"], [], [b"3"]], strict=True):
        _write(path, values)
    assert shards.count_records(paths) == 3


@pytest.mark.parametrize("record", [0, 1, 2])
def test_flipped_bit_names_shard_and_record(tmp_path, record):
    whole, damaged = tmp_path / "a", tmp_path / "b"
    _write(whole, [b"x"] * 5)
    _write(damaged, [b"abcd"] * 3)
    # A record is: length (8 bytes), checksum of it (4), data, checksum of it (4).
    data = bytearray(damaged.read_bytes())
    size = 8 + 4 + 4 + 4
    assert struct.unpack_from("<Q", data, record * size) == (4,)
    data[record * size + 12] ^= 1
    damaged.write_bytes(bytes(data))
    with pytest.raises(SfmError, match=f"{damaged} is damaged at record {record}: "):
        shards.count_records([whole, damaged])


def test_cut_off_shard_is_named(tmp_path):
    path = tmp_path / "a"
    _write(path, [b"abcd"] * 3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SfmError, match=f"{path} is damaged at record 2"):
        shards.count_records([path])


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
