"""Data that TensorFlow Datasets keeps in its own folder: making it and reading it."""

import os
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from sfm_tf.errors import SfmError
from sfm_tf.records.example import ImageRecord


def prepare(builder: tfds.core.DatasetBuilder, archives: pathlib.Path | None = None) -> None:
    """Prepares a dataset: its folder appears when it is complete, and not before.

    Args:
        builder: The dataset.
        archives: Folder of its original archives, under their original names. None to download
            them, from their own host, if it needs any.

    Raises:
        SfmError: If an archive cannot be downloaded or is not the original, or the data cannot
            be written.
    """
    configuration = tfds.download.DownloadConfig(
        manual_dir=archives and os.fspath(archives), try_download_gcs=False
    )
    try:
        builder.download_and_prepare(download_config=configuration)
    except tfds.download.download_manager.NonMatchingChecksumError as error:
        raise SfmError(
            f"An archive of dataset {builder.name!r} is not the original one; fetch it again. "
            f"{_one_line(error)}"
        ) from error
    except (tfds.download.DownloadError, OSError) as error:
        raise SfmError(
            f"Cannot prepare dataset {builder.name!r} in {builder.data_dir}: {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_records(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[ImageRecord]:
    """Yields the images of a prepared dataset in the order in which they are stored.

    Args:
        builder: The dataset, with features `image`, `label` and perhaps `id`.
        split: Name of the split.

    Yields:
        Each image; its key is its `id` if it has one, else split and position.
    """
    # Caching would hold the whole dataset in memory.
    dataset = builder.as_dataset(split=split, read_config=tfds.ReadConfig(try_autocache=False))
    for index, example in enumerate(dataset.as_numpy_iterator()):
        key = example["id"].decode() if "id" in example else f"{split}_{index:06d}"
        yield ImageRecord(key, example["image"], int(example["label"]))
