"""Records as `tf.data` or as arrays, in the order they were written."""

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.records import shards
from sfm_tf.records.example import parse_pixels, parse_record
from sfm_tf.records.schema import Schema

_BATCH = 512


def _whole_shards(folder: pathlib.Path, split: str, schema: Schema) -> list[pathlib.Path]:
    if split not in schema.split_sizes:
        raise SfmError(f"Unknown split {split!r}; expected one of {', '.join(schema.split_sizes)}.")
    paths = shards.find_shards(folder, split)
    count = shards.count_records(paths)
    if count != schema.split_sizes[split]:
        raise SfmError(
            f"Split {split!r} in {folder} has {count} records; "
            f"expected {schema.split_sizes[split]} by its schema, run the ingest again."
        )
    return paths


def _parsed_records(
    folder: pathlib.Path,
    split: str,
    schema: Schema,
    parse: Callable[[tf.Tensor, Schema], tuple[tf.Tensor, tf.Tensor]],
) -> tf.data.Dataset:
    paths = _whole_shards(folder, split, schema)
    # Writing is round-robin, so taking one record of each shard in turn restores its order.
    serialized = tf.data.Dataset.from_tensor_slices([str(path) for path in paths]).interleave(
        tf.data.TFRecordDataset, cycle_length=len(paths), block_length=1
    )
    records = serialized.map(
        functools.partial(parse, schema=schema),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return records.apply(tf.data.experimental.assert_cardinality(schema.split_sizes[split]))


def read_pixels(folder: pathlib.Path, split: str, schema: Schema) -> tf.data.Dataset:
    """Reads a split without scaling its pixels; otherwise as `read_split`.

    Returns:
        Dataset of `(image, label)`: uint8 of shape `(height, width, channels)`, scalar int64.
    """
    return _parsed_records(folder, split, schema, parse_pixels)


def read_split(folder: pathlib.Path, split: str, schema: Schema) -> tf.data.Dataset:
    """Reads a split for a model.

    The checksums of all records are verified before this returns: damage is reported here rather
    than in the middle of an epoch.

    Args:
        folder: Folder of the shards.
        split: Name of the split.
        schema: Schema of the dataset.

    Returns:
        Dataset of `(image, label)` in the order of writing, unbatched: float32 in [0, 1] of shape
        `(height, width, channels)` and a scalar int64. Its cardinality is the split's size.

    Raises:
        SfmError: If a shard is missing, cut off or damaged, or records are missing; names the
            shard and the record.
    """
    return _parsed_records(folder, split, schema, parse_record)


def load_split(
    folder: pathlib.Path, split: str, schema: Schema, limit: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split, or its first records, into memory.

    Args:
        folder: Folder of the shards.
        split: Name of the split.
        schema: Schema of the dataset.
        limit: Records wanted at most; 0 for all.

    Returns:
        Images, float32 in [0, 1] of shape `(records, height, width, channels)`, and labels, int64
        of shape `(records,)`, in the order of writing.

    Raises:
        SfmError: As `read_split`, or if an image cannot be decoded; names the shard and the record.
    """
    dataset = read_split(folder, split, schema)
    size = schema.split_sizes[split]
    count = min(limit, size) if limit else size
    images = np.empty((count, *schema.image_shape), np.float32)
    labels = np.empty((count,), np.int64)
    start = 0
    try:
        for image_batch, label_batch in dataset.take(count).batch(_BATCH).as_numpy_iterator():
            stop = start + len(label_batch)
            images[start:stop], labels[start:stop] = image_batch, label_batch
            start = stop
    except tf.errors.InvalidArgumentError as error:
        raise SfmError(_undecodable(folder, split, schema)) from error
    return images, labels


def _undecodable(folder: pathlib.Path, split: str, schema: Schema) -> str:
    for path in shards.find_shards(folder, split):
        for index, serialized in enumerate(tf.data.TFRecordDataset(str(path))):
            try:
                parse_record(serialized, schema)
            except (tf.errors.InvalidArgumentError, ValueError) as error:
                reason = str(getattr(error, "message", error)).splitlines()[0]
                return f"Record {index} of shard {path} cannot be decoded: {reason}"
    return f"A record of split {split!r} in {folder} could not be decoded when first read"
