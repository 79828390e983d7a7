"""Records into TFRecord shards, whole or not at all."""

import contextlib
import os
import pathlib
import types
from collections.abc import Iterable

import tensorflow as tf

from sfm_tf.artifacts import atomic_files
from sfm_tf.errors import SfmError
from sfm_tf.records import shards
from sfm_tf.records.example import ImageRecord, encode_record


class SplitWriter:
    """Writes the records of one split round-robin into its shards.

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
            folder / shards.shard_name(split, index, shard_count) for index in range(shard_count)
        ]
        self._temporaries = [
            path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in self._paths
        ]
        self._writers: list[tf.io.TFRecordWriter] = []
        self._open_files = contextlib.ExitStack()
        self._shape: tuple[int, ...] | None = None

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
            SfmError: If its image has another shape than those before.
            tf.errors.OpError: If the disk is full or fails.
        """
        if self._shape is None:
            self._shape = record.image.shape
        if record.image.shape != self._shape:
            raise SfmError(
                f"Image {record.key!r} has shape {record.image.shape}; expected {self._shape} "
                "like the images before it, set an image size to resize them."
            )
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


def write_split(
    records: Iterable[ImageRecord], folder: pathlib.Path, split: str, shard_count: int
) -> int:
    """Writes a split as `<split>-00000-of-00004.tfrecord` and so on.

    Record `i` is record `i // shard_count` of shard `i % shard_count`; equal records make equal
    files.

    Args:
        records: The images, in the order in which they will be read.
        folder: Folder to write into, made if it does not exist.
        split: Name of the split.
        shard_count: Number of files.

    Returns:
        The number of records written.

    Raises:
        SfmError: If images differ in shape, or the shards cannot be opened.
        tf.errors.OpError: If the disk is full or fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with SplitWriter(folder, split, shard_count) as writer:
        for record in records:
            writer.write(record)
    return writer.count
