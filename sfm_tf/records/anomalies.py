"""Anomalies of ingested images: found record by record, each with its place."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from sfm_tf.errors import SfmError
from sfm_tf.records import tfrecords
from sfm_tf.records.example import ENCODED, LABEL, pixel_digest
from sfm_tf.records.schema import Schema

LISTED_PER_KIND = 100

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH_OFFSET = 24


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """Something a person should look at before training.

    Attributes:
        kind: One of `datasets.settings.ANOMALY_KINDS`.
        message: One line about it.
        split: Name of the split; empty where several are meant.
        shard: Name of the file; empty where the whole split is meant.
        index: Position of the record in its shard; None where no single record is meant.
        label: Label of the record; None where it has none or could not be read.
    """

    kind: str
    message: str
    split: str = ""
    shard: str = ""
    index: int | None = None
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a record is."""

    split: str
    shard: str
    index: int
    label: int | None = None

    def anomaly(self, kind: str, message: str) -> Anomaly:
        return Anomaly(kind, message, self.split, self.shard, self.index, self.label)

    def __str__(self) -> str:
        return f"{self.shard}, record {self.index}"


@dataclasses.dataclass
class _Inspection:
    """The state of one pass over all splits."""

    folder: pathlib.Path
    schema: Schema
    first_places: dict[str, _Place] = dataclasses.field(default_factory=dict)
    class_counts: dict[str, collections.Counter[int | None]] = dataclasses.field(
        default_factory=dict
    )

    def inspect_split(self, split: str) -> Iterator[Anomaly]:
        """Yields what is wrong in one split."""
        try:
            names = tfrecords.shard_names(self.folder, split)
        except SfmError as error:
            yield Anomaly("truncated_shard", str(error), split)
            return
        self.class_counts[split] = collections.Counter()
        for name in names:
            yield from self._inspect_shard(split, name)

    def _inspect_shard(self, split: str, name: str) -> Iterator[Anomaly]:
        index = 0
        try:
            for serialized in tf.data.TFRecordDataset(str(self.folder / name)).as_numpy_iterator():
                place, problem = self._inspect_record(_Place(split, name, index), serialized)
                self.class_counts[split][place.label] += 1
                if problem:
                    yield problem
                index += 1
        except tf.errors.OpError as error:
            message = f"Shard {name} ends at record {index}: {error.message.splitlines()[0]}"
            yield Anomaly("truncated_shard", message, split, name, index)

    def _inspect_record(self, place: _Place, serialized: bytes) -> tuple[_Place, Anomaly | None]:
        try:
            label, encoded = _read_features(serialized)
        except (DecodeError, IndexError) as error:
            message = f"Not a record of an image: {error}"
            return place, place.anomaly("unreadable_image", message)
        place = dataclasses.replace(place, label=label)
        if not 0 <= label < len(self.schema.class_names):
            message = f"Label {label}; expected 0 to {len(self.schema.class_names) - 1}."
            return place, place.anomaly("label_out_of_range", message)
        if _bit_depth(encoded) not in (None, 8):
            message = f"Image has {_bit_depth(encoded)} bits per value; expected 8."
            return place, place.anomaly("value_range", message)
        try:
            image = tf.io.decode_png(encoded).numpy()
        except tf.errors.InvalidArgumentError as error:
            message = f"Image cannot be decoded: {error.message.splitlines()[0]}"
            return place, place.anomaly("unreadable_image", message)
        return place, self._inspect_image(place, image)

    def _inspect_image(self, place: _Place, image: np.ndarray) -> Anomaly | None:
        if image.shape != self.schema.image_shape:
            message = f"Image has shape {image.shape}; expected {self.schema.image_shape}."
            return place.anomaly("wrong_shape", message)
        first = self.first_places.setdefault(pixel_digest(image), place)
        if first.split != place.split:
            return place.anomaly("leakage", f"Image is also in {first.split}: {first}.")
        if first.label != place.label:
            message = f"Image has label {place.label}, but {first.label} in {first}."
            return place.anomaly("label_conflict", message)
        return None

    def inspect_counts(self) -> Iterator[Anomaly]:
        """Yields what is wrong with the numbers of records, once all splits were inspected."""
        for split, class_counts in self.class_counts.items():
            count, expected = class_counts.total(), self.schema.split_sizes[split]
            if count != expected:
                message = f"Split {split!r} has {count} readable records; expected {expected}."
                yield Anomaly("count_mismatch", message, split)
            for label, name in enumerate(self.schema.class_names):
                if not class_counts[label]:
                    message = f"Class {name!r} has no image in split {split!r} and "
                    message += self._advice_on_class(label)
                    yield Anomaly("empty_class", message, split, label=label)

    def _advice_on_class(self, label: int) -> str:
        count = sum(counts[label] for counts in self.class_counts.values())
        lacking = len(self.schema.split_sizes) - count
        if lacking > 0:
            return f"{count} in all; add at least {lacking}, so that it has one for each split."
        return (
            f"{count} in all; add some that are no copies, or take more by --validation_fraction, "
            "--test_fraction, --max_train_examples or --max_test_examples."
        )


def _read_features(serialized: bytes) -> tuple[int, bytes]:
    feature = tf.train.Example.FromString(serialized).features.feature
    return feature[LABEL].int64_list.value[0], feature[ENCODED].bytes_list.value[0]


def _bit_depth(encoded: bytes) -> int | None:
    if not encoded.startswith(_PNG_START) or len(encoded) <= _PNG_BIT_DEPTH_OFFSET:
        return None
    return encoded[_PNG_BIT_DEPTH_OFFSET]


def find_anomalies(folder: pathlib.Path, schema: Schema) -> list[Anomaly]:
    """Looks at every record of every split.

    A record gets at most one anomaly, the first of: it cannot be read, its label is no class, its
    values are not 8-bit, its image has another shape, its pixels are also in another split
    (`leakage`, reported in the later one), its pixels have another label (`label_conflict`).

    Args:
        folder: Folder of the shards.
        schema: What the shards are expected to hold.

    Returns:
        The anomalies in the order of reading, train first, and last those of counts. Of each kind
        at most `LISTED_PER_KIND` are listed; one more then says how many are not.
    """
    inspection = _Inspection(folder, schema)
    listed: list[Anomaly] = []
    counts: collections.Counter[str] = collections.Counter()
    # Train first: an image in train and elsewhere is a leak, reported where it is not train.
    splits = sorted(schema.split_sizes, key=lambda name: name != "train")
    for anomaly in itertools.chain(
        *map(inspection.inspect_split, splits), inspection.inspect_counts()
    ):
        counts[anomaly.kind] += 1
        if counts[anomaly.kind] <= LISTED_PER_KIND:
            listed.append(anomaly)
    for kind, count in counts.items():
        if count > LISTED_PER_KIND:
            hidden = count - LISTED_PER_KIND
            listed.append(Anomaly(kind, f"{hidden} more of kind {kind!r} are not listed."))
    return listed
