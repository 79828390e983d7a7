"""The TFRecord files of a split: their names, and whether they are whole."""

import pathlib
import re

import tensorflow as tf

from sfm_tf.errors import SfmError

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.tfrecord$")


def shard_name(split: str, index: int, shard_count: int) -> str:
    """Returns for instance `train-00000-of-00004.tfrecord`."""
    return f"{split}-{index:05d}-of-{shard_count:05d}.tfrecord"


def shard_names(folder: pathlib.Path, split: str) -> list[str]:
    """Returns the names that the shards of `split` have, whether all of them exist or not.

    Raises:
        SfmError: If `folder` holds no shard of `split`, or shards of different numberings.
    """
    matches = [_SHARD.search(path.name) for path in folder.glob(f"{split}-?????-of-?????.tfrecord")]
    counts = {int(match[2]) for match in matches if match}
    if not counts:
        raise SfmError(f"No records of split {split!r} in {folder}; run the ingest first.")
    if len(counts) > 1:
        raise SfmError(
            f"Shards of split {split!r} in {folder} are numbered of {sorted(counts)}; "
            "expected one numbering, ingest into an empty folder."
        )
    shard_count = counts.pop()
    return [shard_name(split, index, shard_count) for index in range(shard_count)]


def find_shards(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the shards of `split` in order.

    Raises:
        SfmError: If any is missing.
    """
    paths = [folder / name for name in shard_names(folder, split)]
    for path in paths:
        if not path.is_file():
            raise SfmError(f"Shard {path} is missing; run the ingest again.")
    return paths


def count_records(paths: list[pathlib.Path]) -> int:
    """Reads whole shards, so that the checksum of every record is verified, and counts records.

    Raises:
        SfmError: If a shard is cut off or damaged; names the shard and the record.
    """
    dataset = tf.data.TFRecordDataset([str(path) for path in paths])
    try:
        return int(dataset.reduce(tf.constant(0, tf.int64), lambda count, _: count + 1))
    except tf.errors.DataLossError as error:
        raise SfmError(f"{_damage(paths)}; run the ingest again.") from error


def _damage(paths: list[pathlib.Path]) -> str:
    for path in paths:
        index = 0
        try:
            for _ in tf.data.TFRecordDataset(str(path)):
                index += 1
        except tf.errors.DataLossError as error:
            return f"Shard {path} is damaged at record {index}: {error.message.splitlines()[0]}"
    return "A shard was damaged when first read"
