"""Splits of a dataset as sharded TFRecord files: read in the order in which they are written."""

import contextlib
import functools
import os
import pathlib
import re
import types
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from sfm_tf.artifacts import atomic_files
from sfm_tf.errors import SfmError
from sfm_tf.records.example import ImageRecord, encode_record, parse_pixels, parse_record
from sfm_tf.records.schema import Schema

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.tfrecord$")
_BATCH = 512


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
        SfmError: If a shard is missing, cut off or damaged, if records are missing, or if an image
            cannot be decoded; names the shard and the record.
    """
    dataset = _parsed_records(folder, split, schema, parse_record)
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


def read_pixels(folder: pathlib.Path, split: str, schema: Schema) -> tf.data.Dataset:
    """Returns a split as it was written, without scaling its pixels.

    The checksums of all records are verified before this returns: damage is reported here rather
    than in the middle of a pass.

    Args:
        folder: Folder of the shards.
        split: Name of the split.
        schema: Schema of the dataset.

    Returns:
        Dataset of `(image, label)` in the order of writing, unbatched: uint8 of shape
        `(height, width, channels)` and a scalar int64. Its cardinality is the split's size.

    Raises:
        SfmError: If a shard is missing, cut off or damaged, or if records are missing; names the
            shard and the record.
    """
    return _parsed_records(folder, split, schema, parse_pixels)


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


def _whole_shards(folder: pathlib.Path, split: str, schema: Schema) -> list[pathlib.Path]:
    if split not in schema.split_sizes:
        raise SfmError(f"Unknown split {split!r}; expected one of {', '.join(schema.split_sizes)}.")
    paths = _find_shards(folder, split)
    count = _count_records(paths)
    if count != schema.split_sizes[split]:
        raise SfmError(
            f"Split {split!r} in {folder} has {count} records; "
            f"expected {schema.split_sizes[split]} by its schema. Run the ingest again."
        )
    return paths


def _find_shards(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the shards of `split` in order; raises `SfmError` if any is missing."""
    paths = [folder / name for name in shard_names(folder, split)]
    for path in paths:
        if not path.is_file():
            raise SfmError(f"Shard {path} is missing; run the ingest again.")
    return paths


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
            f"Split {split!r} in {folder} has shards of several ingests, numbered out of "
            f"{' and '.join(map(str, sorted(counts)))}; ingest into an empty folder."
        )
    shard_count = counts.pop()
    return [_shard_name(split, index, shard_count) for index in range(shard_count)]


def _shard_name(split: str, index: int, shard_count: int) -> str:
    return f"{split}-{index:05d}-of-{shard_count:05d}.tfrecord"


def _count_records(paths: list[pathlib.Path]) -> int:
    """Reads whole shards, so that the checksum of every record is verified, and counts records."""
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


def _undecodable(folder: pathlib.Path, split: str, schema: Schema) -> str:
    for path in _find_shards(folder, split):
        for index, serialized in enumerate(tf.data.TFRecordDataset(str(path))):
            try:
                parse_record(serialized, schema)
            except (tf.errors.InvalidArgumentError, ValueError) as error:
                reason = str(getattr(error, "message", error)).splitlines()[0]
                return f"Record {index} of shard {path} cannot be decoded: {reason}"
    return f"A record of split {split!r} in {folder} could not be decoded when first read"


class SplitWriter:
    """Writes the records of one split round-robin into its shards `train-00000-of-00004.tfrecord`.

    Record `i` is record `i // shard_count` of shard `i % shard_count`; equal records make equal
    files.

    A context manager: the shards appear under their names when it is left without an exception,
    and not at all otherwise.

    Attributes:
        count: Records written so far.
    """

    def __init__(self, folder: pathlib.Path, split: str, shard_count: int) -> None:
        """Prepares to write `shard_count` shards of `split` into `folder`, which exists."""
        self.count = 0
        self._folder = folder
        self._paths = [
            folder / _shard_name(split, index, shard_count) for index in range(shard_count)
        ]
        self._temporaries = [
            path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in self._paths
        ]
        self._writers: list[tf.io.TFRecordWriter] = []
        self._open_files = contextlib.ExitStack()

    def __enter__(self) -> "SplitWriter":
        """Opens the shards.

        Raises:
            SfmError: If they cannot be opened.
        """
        try:
            for path in self._temporaries:
                writer = self._open_files.enter_context(tf.io.TFRecordWriter(str(path)))
                self._writers.append(writer)
        except tf.errors.OpError as error:
            self._close(publish=False)
            raise SfmError(
                f"Cannot open {len(self._paths)} shards in {self._folder}: {error.message}; "
                "expected a folder that can be written, or fewer shards."
            ) from error
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Closes the shards and, unless there was an exception, gives them their names."""
        self._close(publish=exception_type is None)

    def write(self, record: ImageRecord) -> None:
        """Writes one record.

        Raises:
            tf.errors.OpError: If the disk is full or fails.
        """
        self._writers[self.count % len(self._writers)].write(encode_record(record))
        self.count += 1

    def _close(self, *, publish: bool) -> None:
        try:
            # What is still buffered is written here: a full disk surfaces at the latest now.
            self._open_files.close()
            if publish:
                for temporary, path in zip(self._temporaries, self._paths, strict=True):
                    _sync_file(temporary)
                    os.replace(temporary, path)
                atomic_files.sync_folder(self._folder)
        finally:
            for temporary in self._temporaries:
                temporary.unlink(missing_ok=True)


def _sync_file(path: pathlib.Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
