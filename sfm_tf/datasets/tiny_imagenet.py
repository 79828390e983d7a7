"""Tiny ImageNet: 64x64 images of up to 200 classes, from the official archive or a folder.

The layout is that of `tiny-imagenet-200.zip` (Stanford CS231n, 2015): `wnids.txt`, `words.txt`,
`train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` and `val/val_annotations.txt`. Its test images
have no labels, so the labelled `val` images serve for testing, as is usual in the literature, and
validation images are taken from train.
"""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sfm_tf.datasets.archives import (
    MANUAL_ARCHIVES,
    Archive,
    fingerprint,
    open_archive,
    source_path,
)
from sfm_tf.datasets.decoding import decode_image, image_shape
from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.datasets.tfds_source import data_folder, prepare, read_records
from sfm_tf.errors import SfmError, enumerated, printable

_SIDE = 64


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the files are in an archive.

    Attributes:
        archive: The archive, open.
        root: What precedes `wnids.txt` in its name: nothing, or one folder and a slash.
    """

    archive: Archive
    root: str

    @classmethod
    def of(cls, archive: Archive) -> "_Layout":
        """Finds the layout; raises `SfmError` if the archive has another one."""
        for name in archive.versions:
            if name.rpartition("/")[2] == "wnids.txt" and name.count("/") <= 1:
                return cls(archive, name.removesuffix("wnids.txt"))
        raise SfmError("Not Tiny ImageNet: wnids.txt is missing; expected the official layout.")

    def lines(self, name: str) -> list[str]:
        """Returns the lines of a text file, without empty ones; a byte-order mark is dropped."""
        try:
            text = self.archive.read(self.root + name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SfmError(
                f"Tiny ImageNet: {name} is not text in UTF-8 ({error}); save it as UTF-8."
            ) from error
        return [line for line in text.splitlines() if line.strip()]

    def wnids(self) -> list[str]:
        """Returns the WordNet id of each class."""
        wnids = [line.strip() for line in self.lines("wnids.txt")]
        if not wnids or len(set(wnids)) != len(wnids):
            raise SfmError("Tiny ImageNet: expected distinct classes in wnids.txt, one per line.")
        return wnids

    def class_names(self) -> list[str]:
        """Returns the first word for each class; where classes share it, with the WordNet id."""
        words = dict(line.split("\t", 1) for line in self.lines("words.txt") if "\t" in line)
        words = {wnid.strip(): name.split(",")[0].strip() for wnid, name in words.items()}
        names = {wnid: printable(words.get(wnid) or wnid) for wnid in self.wnids()}
        counts = collections.Counter(names.values())
        return [name if counts[name] == 1 else f"{name} ({wnid})" for wnid, name in names.items()]

    def train_images(self) -> Iterator[tuple[str, str]]:
        """Yields the path below the root and the class of each training image."""
        by_folder = collections.defaultdict(list)
        for name in sorted(self.archive.versions):
            if name.upper().endswith(".JPEG"):
                by_folder[name.rpartition("/")[0]].append(name.removeprefix(self.root))
        for wnid in self.wnids():
            paths = by_folder[f"{self.root}train/{wnid}/images"]
            if not paths:
                raise SfmError(f"Tiny ImageNet: class {wnid} has no image in train/{wnid}/images.")
            yield from ((path, wnid) for path in paths)

    def validation_images(self) -> Iterator[tuple[str, str]]:
        """Yields the path below the root and the class of each labelled image of `val`."""
        wnids = set(self.wnids())
        seen: set[str] = set()
        for line in self.lines("val/val_annotations.txt"):
            name, wnid = (field.strip() for field in (line.split("\t") + [""])[:2])
            if wnid not in wnids:
                raise SfmError(
                    f"Tiny ImageNet: val_annotations.txt gives {name!r} the class {wnid!r}; "
                    "expected one of wnids.txt."
                )
            if name in seen:
                raise SfmError(f"Tiny ImageNet: val_annotations.txt has {name!r} twice.")
            seen.add(name)
            yield f"val/images/{name}", wnid
        if not seen:
            raise SfmError(
                "Tiny ImageNet: val_annotations.txt is empty; expected a line for each image."
            )


@dataclasses.dataclass(eq=False)
class TinyImagenetConfig(tfds.core.BuilderConfig):
    """Which archive to prepare.

    Attributes:
        archive: Path of the zip file or folder.
    """

    archive: str = ""


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Prepares Tiny ImageNet as PNG, from the archive that its configuration names."""

    VERSION = tfds.core.Version("1.0.0")

    def _open(self) -> Archive:
        return open_archive(pathlib.Path(self.builder_config.archive))

    def _info(self) -> tfds.core.DatasetInfo:
        with self._open() as archive:
            names = _Layout.of(archive).class_names()
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(_SIDE, _SIDE, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=names),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiny ImageNet",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # The archive is given; nothing is downloaded.
        return {
            "train": self._generate_examples(_Layout.train_images),
            "validation": self._generate_examples(_Layout.validation_images),
        }

    def _generate_examples(
        self, list_images: Callable[[_Layout], Iterator[tuple[str, str]]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._open() as archive:
            layout = _Layout.of(archive)
            labels = {wnid: label for label, wnid in enumerate(layout.wnids())}
            problems = []
            for path, wnid in list_images(layout):
                key = printable(path)
                try:
                    image = _decoded(archive.read(layout.root + path), key)
                except SfmError as error:
                    problems.append(str(error))
                else:
                    yield key, {"id": key, "image": image, "label": labels[wnid]}
        if problems:
            raise SfmError(enumerated(problems))


def _decoded(data: bytes, name: str) -> np.ndarray:
    height, width = image_shape(data, name)
    if (height, width) != (_SIDE, _SIDE):
        raise SfmError(f"Image {name} has {width}x{height} pixels; expected {_SIDE}x{_SIDE}.")
    return decode_image(data, name)


def open_source(config: DataConfig) -> ImageSource:
    """Opens Tiny ImageNet; prepares it in `data_dir` first if necessary.

    Args:
        config: Its `source` is the archive or folder; without one, the archive is looked for in
            `<data_dir>/downloads/manual`.

    Returns:
        The dataset: train, and as test the labelled images of `val`. Keys are the images' paths.

    Raises:
        SfmError: If the archive is missing, is not sound, or holds anything unexpected.
    """
    path = source_path(config)
    if not path.exists():
        raise SfmError(
            f"No Tiny ImageNet at {path}; give --source {MANUAL_ARCHIVES[config.dataset]} or its "
            "folder, or put the archive there."
        )
    with open_archive(path) as archive:
        name = fingerprint(archive)
    builder = TinyImagenet(
        data_dir=data_folder(config),
        config=TinyImagenetConfig(name=name, archive=os.fspath(path)),
    )
    prepare(builder)
    splits = {
        "train": functools.partial(read_records, builder, "train"),
        "test": functools.partial(read_records, builder, "validation"),
    }
    class_names = tuple(builder.info.features["label"].names)
    return ImageSource(class_names, splits, height=_SIDE, width=_SIDE, channels=3)
