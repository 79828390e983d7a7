"""CIFAR-10 and SVHN through TensorFlow Datasets: prepared, from archives at hand, or downloaded."""

import functools
import os
import pathlib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping

import tensorflow_datasets as tfds

from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.errors import SfmError, check_utf8
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
            f"An archive of dataset {builder.name!r} is not the original one; download it again. "
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


CLASS_NAMES: Mapping[str, tuple[str, ...]] = {
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "svhn_cropped": tuple(str(digit) for digit in range(10)),
}
"""Listed here because the file that names them may be missing from prepared data."""

_CONNECTION_TIMEOUT_SECONDS = 3.0


def open_source(config: DataConfig) -> ImageSource:
    """Opens CIFAR-10 or SVHN; prepares it first if necessary.

    Preparing takes the original archives from `<data_dir>/downloads/manual` or
    `<data_dir>/downloads`, whose checksums TensorFlow Datasets verifies, or downloads them.

    Args:
        config: Names the dataset and the folder of prepared data.

    Returns:
        The dataset, with splits train and test. Keys are the images' `id`, if they have one.

    Raises:
        SfmError: If the dataset is neither prepared nor at hand and cannot be downloaded.
    """
    builder = tfds.builder(config.dataset, data_dir=data_folder(config))
    if not builder.is_prepared():
        _prepare(builder)
    height, width, channels = builder.info.features["image"].shape
    splits = {split: functools.partial(read_records, builder, split) for split in ("train", "test")}
    return ImageSource(CLASS_NAMES[config.dataset], splits, height, width, channels)


def data_folder(config: DataConfig) -> str | None:
    """Returns the folder of TensorFlow Datasets; None for the default of that library.

    Raises:
        SfmError: If its name is not UTF-8.
    """
    check_utf8(config.data_dir, "--data_dir")
    return os.path.expanduser(config.data_dir) or None


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    downloads = pathlib.Path(builder.data_dir_root) / "downloads"
    archives = {url: info.filename for url, info in builder.url_infos.items()}
    folders = (downloads / "manual", downloads)
    manual = next((folder for folder in folders if _holds(folder, archives)), None)
    if manual is None:
        # TensorFlow Datasets itself would try for minutes before it gave up.
        _check_connection(builder.name, archives, downloads / "manual")
    prepare(builder, manual)


def _holds(folder: pathlib.Path, archives: Mapping[str, str]) -> bool:
    return all((folder / name).is_file() for name in archives.values())


def _check_connection(dataset: str, archives: Mapping[str, str], manual: pathlib.Path) -> None:
    """Raises `SfmError` if the host of the archives does not answer; any answer will do."""
    request = urllib.request.Request(next(iter(archives)), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_CONNECTION_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except OSError as error:
        host = urllib.parse.urlsplit(request.full_url).netloc
        raise SfmError(
            f"Dataset {dataset!r} is not prepared in {manual.parent.parent} and {host} cannot "
            f"be reached ({error}); put {', '.join(sorted(archives.values()))} "
            f"into {manual}."
        ) from error
