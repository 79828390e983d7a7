"""A user's own images: a folder per class, with or without folders train and test around them."""

import contextlib
import functools
import os
import pathlib
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from sfm_tf.datasets.decoding import decode_image, image_shape
from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.errors import SfmError
from sfm_tf.records.example import ImageRecord

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _split_folders(source: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folder of each split; `source` itself is train where it holds the classes."""
    train = source / "train"
    # A folder "train" that holds images, not folders, is a class of that name.
    if not train.is_dir() or not any(path.is_dir() for path in _visible(train)):
        return {"train": source}
    for path in _visible(source):
        if path.name not in SPLITS:
            raise SfmError(
                f"Unexpected {path}; expected only {' and '.join(SPLITS)} beside each other "
                "(validation images are taken from train)."
            )
    return {path.name: path for path in _visible(source)}


def _images_of_class(folder: pathlib.Path) -> list[pathlib.Path]:
    images = _visible(folder)
    for path in images:
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            raise SfmError(f"Unexpected {path}; expected only {', '.join(SUFFIXES)} files there.")
    if not images:
        raise SfmError(f"Class folder {folder} has no image; add some or remove it.")
    return images


def _images_by_class(split: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    for path in _visible(split):
        if not path.is_dir():
            raise SfmError(f"Unexpected {path}; expected only folders there, one per class.")
    return {path.name: _images_of_class(path) for path in _visible(split)}


def _check_classes(source: pathlib.Path, classes: Mapping[str, Collection[str]]) -> None:
    if len(classes["train"]) < 2:
        raise SfmError(
            f"Found {len(classes['train'])} class folders in {source}; expected at least two."
        )
    extra = sorted(set(classes.get("test", ())) - set(classes["train"]))
    if extra:
        raise SfmError(f"Classes {', '.join(extra)} of {source} are in test but not in train.")


@contextlib.contextmanager
def _tfds_layout(folders: Mapping[str, pathlib.Path]) -> Iterator[pathlib.Path]:
    """Gives a temporary folder of links, `<split>/<class>` as TensorFlow Datasets wants it."""
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        for split, folder in folders.items():
            (root / split).symlink_to(folder.resolve(), target_is_directory=True)
        yield root


def _read(
    folders: Mapping[str, pathlib.Path], split: str, class_names: Sequence[str]
) -> Iterator[ImageRecord]:
    with _tfds_layout(folders) as root:
        builder = tfds.ImageFolder(os.fspath(root))
        # The files are decoded below, where the size is checked before memory is taken.
        dataset = builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        for example in dataset.as_numpy_iterator():
            path = pathlib.Path(os.fsdecode(example["image/filename"])).relative_to(root / split)
            if any(part.startswith(".") for part in path.parts):
                continue
            image = decode_image(example["image"], os.fspath(folders[split] / path))
            # The label by name: TensorFlow Datasets counts hidden folders as classes.
            label = class_names.index(path.parts[0])
            yield ImageRecord(f"{split}/{path.as_posix()}", image, label)


def open_source(config: DataConfig) -> ImageSource:
    """Opens `<source>/<split>/<class>/<image>`, or `<source>/<class>/<image>` without a test split.

    Args:
        config: Its `source` is the folder. Splits are named train and test; images are PNG or
            JPEG, of one size unless `image_size` is set. Hidden files are left out.

    Returns:
        The images as RGB, in an order that mixes the classes. Height and width are those of the
        first image of the first class. Keys are paths.

    Raises:
        SfmError: If the folder is missing or has another layout, or an image cannot be read.
    """
    source = pathlib.Path(config.source).expanduser()
    if not config.source or not source.is_dir():
        raise SfmError(f"No folder {config.source!r}; give --source a folder of class folders.")
    folders = _split_folders(source)
    images = {split: _images_by_class(folder) for split, folder in folders.items()}
    _check_classes(source, images)
    class_names = tuple(sorted(images["train"]))
    first = images["train"][class_names[0]][0]
    height, width = image_shape(first.read_bytes(), os.fspath(first))
    splits = {split: functools.partial(_read, folders, split, class_names) for split in folders}
    return ImageSource(class_names, splits, height, width, channels=3)
