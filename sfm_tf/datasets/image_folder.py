"""A user's own images: a folder per class, with or without folders of splits around them."""

import collections
import dataclasses
import functools
import hashlib
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from sfm_tf.datasets.archives import Archive, open_archive, source_path
from sfm_tf.datasets.decoding import decode_image, image_shape
from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.errors import SfmError, enumerated, listed, printable
from sfm_tf.records.example import ImageRecord

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
"""What the folder of a split may be called, in small or capital letters."""

SUFFIXES = (".png", ".jpg", ".jpeg")

_EXPECTED_LAYOUT = (
    "expected a folder of images per class, or folders train, validation and test around those"
)


@dataclasses.dataclass(frozen=True)
class _ImageFile:
    """An image that was found and not read.

    Attributes:
        name: Its name in the archive.
        class_name: Name of its class.
        key: Split, folder of the class and file name, in printable letters.
    """

    name: str
    class_name: str
    key: str


@dataclasses.dataclass
class _Layout:
    """What an archive holds, by its folders.

    Attributes:
        source: Where the archive is.
        images: The images of each split.
        problems: What should not be there.
    """

    source: pathlib.Path
    images: dict[str, list[_ImageFile]]
    problems: list[str]

    def add_problem(self, found: Sequence[str], what: str, expected: str) -> None:
        """Adds a sentence about files or folders, named by their names in the archive."""
        if found:
            paths = [printable(f"{self.source}/{name.rstrip('/')}") for name in found]
            self.problems.append(f"{what} {listed(paths)}; {expected}.")

    def add_split(self, split: str, folder: str, archive: Archive) -> None:
        """Adds the class folders below `folder`, a name that ends with a slash, or none."""
        strays, deep, others, empty = [], set(), [], []
        for name in (*archive.versions, *archive.empty_folders):
            if not name.startswith(folder):
                continue
            parts = name.removeprefix(folder).split("/")
            if len(parts) == 1:
                strays.append(name)
            elif len(parts) > 2:
                deep.add(folder + "/".join(parts[:2]))
            elif not parts[1]:
                empty.append(name)
            elif not name.lower().endswith(SUFFIXES):
                others.append(name)
            else:
                self._add_image(split, name, *parts)
        self.add_problem(strays, "Unexpected", "expected only folders there, one per class")
        self.add_problem(sorted(deep), "Unexpected folder", _EXPECTED_LAYOUT)
        self.add_problem(others, "Unexpected", f"expected only {', '.join(SUFFIXES)} files there")
        self.add_problem(empty, "Class folder without an image:", "add some or remove it")

    def _add_image(self, split: str, name: str, class_folder: str, file: str) -> None:
        class_name = _class_name(class_folder)
        key = f"{split}/{class_name}/{printable(file)}"
        self.images[split].append(_ImageFile(name, class_name, key))


def _class_name(folder: str) -> str:
    # A folder that was packed on a Mac writes "ä" as two letters, and so would be another class.
    return printable(unicodedata.normalize("NFC", folder))


def _root(names: Sequence[str]) -> str:
    """Returns what precedes all names where one folder, no split's, is around all the others."""
    root = ""
    while True:
        inner = [name.removeprefix(root) for name in names]
        tops = {name.split("/")[0] for name in inner}
        if len(tops) != 1 or _split_of(*tops) or not any(name.count("/") > 1 for name in inner):
            return root
        root += f"{tops.pop()}/"


def _split_of(folder: str) -> str:
    """Returns the split that a folder of this name holds; empty where it is no split's."""
    lower = folder.lower()
    return next((split for split, names in SPLIT_NAMES.items() if lower in names), "")


def _split_folders(root: str, archive: Archive) -> dict[str, list[str]]:
    """Returns the folders of each split; none unless one of train holds folders.

    A folder "train" that holds images, not folders, is a class of that name.
    """
    folders = collections.defaultdict(set)
    for name in (*archive.versions, *archive.empty_folders):
        top, *rest = name.removeprefix(root).split("/")
        if name.startswith(root) and len(rest) > 1:
            folders[_split_of(top)].add(top)
    return {split: sorted(found) for split, found in folders.items() if split}


def _read_layout(source: pathlib.Path, archive: Archive) -> _Layout:
    root = _root(list(archive.versions))
    folders = _split_folders(root, archive)
    if "train" not in folders:
        layout = _Layout(source, {"train": []}, [])
        layout.add_split("train", root, archive)
        return layout
    layout = _Layout(source, {split: [] for split in folders}, [])
    for split, names in folders.items():
        if len(names) > 1:
            raise SfmError(
                f"Found {' and '.join(names)} in {source}, all of split {split}; expected one."
            )
        layout.add_split(split, f"{root}{names[0]}/", archive)
    known = {name for names in folders.values() for name in names}
    tops = {name.removeprefix(root).split("/")[0] for name in archive.versions}
    layout.add_problem(
        [root + top for top in sorted(tops - known)],
        "Unexpected",
        "expected only folders train, validation and test there",
    )
    empty = [name for name in archive.empty_folders if name.removeprefix(root).count("/") == 1]
    layout.add_problem(empty, "Empty folder", "add images or remove it")
    return layout


def _class_names(layout: _Layout) -> tuple[str, ...]:
    classes = {
        split: {image.class_name for image in layout.images[split]} for split in layout.images
    }
    for split, names in classes.items():
        extra = sorted(names - classes["train"])
        if extra:
            layout.problems.append(
                f"Classes {listed(extra)} of {layout.source} are in {split} but not in train."
            )
    if len(classes["train"]) < 2:
        layout.problems.append(
            f"Found {len(classes['train'])} class folders in {layout.source}; expected at least "
            "two."
        )
    return tuple(sorted(classes["train"], key=natural_key))


def natural_key(name: str) -> tuple[object, ...]:
    """Returns what names are sorted by so that numbers in them count as such: 1, 2, 10."""
    parts = re.split("([0-9]+)", name)
    # Two tuples, so that the name of "cat" never meets the number of "cat2".
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts)), name


def _first_shape(archive: Archive, layout: _Layout, class_names: Sequence[str]) -> tuple[int, int]:
    """Returns height and width of the first image that can be read, of the first class."""
    images = sorted(layout.images["train"], key=lambda image: class_names.index(image.class_name))
    problems = list(layout.problems)
    for image in images:
        try:
            return image_shape(archive.read(image.name), f"{layout.source}/{image.key}")
        except SfmError as error:
            problems.append(str(error))
    raise SfmError(enumerated(problems))


def _read(
    source: pathlib.Path,
    images: Sequence[_ImageFile],
    class_names: Sequence[str],
    problems: list[str],
) -> Iterator[ImageRecord]:
    """Yields the images of known classes; adds those that cannot be read to `problems`."""
    labels = {name: label for label, name in enumerate(class_names)}
    with open_archive(source) as archive:
        for image in images:
            if image.class_name not in labels:
                continue  # Of a class that train lacks, which is a problem already.
            path = printable(f"{source}/{image.name}")
            try:
                pixels = decode_image(archive.read(image.name), path)
            except SfmError as error:
                problems.append(str(error))
                continue
            yield ImageRecord(image.key, pixels, labels[image.class_name])


def _by_hash(images: Sequence[_ImageFile]) -> list[_ImageFile]:
    """Returns the images in an order that mixes the classes and follows from the keys alone."""
    return sorted(images, key=lambda image: hashlib.sha256(image.key.encode()).digest())


def open_source(config: DataConfig) -> ImageSource:
    """Opens `<source>/<split>/<class>/<image>`, or `<source>/<class>/<image>` without splits.

    Args:
        config: Its `source` is a folder, or a zip file of one. `SPLIT_NAMES` are the names of the
            splits; images are PNG or JPEG, of one size unless `image_size` is set. Hidden files
            and those of file managers are left out. Symbolic links are followed.

    Returns:
        The images as RGB, in an order that mixes the classes. Classes are in natural order: 1, 2,
        10. Height and width are those of the first image of the first class. Keys are paths.

    Raises:
        SfmError: If the folder is missing, holds less than two classes, or no image can be read.
            What else is wrong is among the `problems` of the source.
    """
    source = source_path(config)
    if source is None or not source.exists():
        raise SfmError(
            f"No folder '{printable(config.source)}'; give --source a folder of class folders, or "
            "a zip file of one."
        )
    with open_archive(source) as archive:
        layout = _read_layout(source, archive)
        class_names = _class_names(layout)
        if len(class_names) < 2:
            raise SfmError(enumerated(layout.problems))
        height, width = _first_shape(archive, layout, class_names)
    splits = {
        split: functools.partial(_read, source, _by_hash(images), class_names, layout.problems)
        for split, images in layout.images.items()
    }
    return ImageSource(
        class_names,
        splits,
        height,
        width,
        channels=3,
        is_stratified=True,
        problems=layout.problems,
        passed_over=archive.passed_over,
    )
