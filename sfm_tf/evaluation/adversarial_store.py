"""Adversarial images on disk, stored once per gradient source, attack and radius."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from sfm_tf.artifacts.atomic_files import sync_folder, write_bytes, write_json
from sfm_tf.artifacts.fingerprints import code_version, fingerprint, package_versions
from sfm_tf.artifacts.progress import Progress
from sfm_tf.attacks.attack import AttackOutcome, CompiledAttack, faults, join_outcomes
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.samples import Samples
from sfm_tf.models import defended_model

_FEATURES = {
    "image/float32": tf.io.FixedLenFeature([], tf.string),
    "attack/loss": tf.io.FixedLenFeature([], tf.float32),
    "attack/iterations": tf.io.FixedLenFeature([], tf.int64),
    "attack/zero_gradient": tf.io.FixedLenFeature([], tf.int64),
}

_REMEDY = "Delete it and run the evaluation again."

# Another disk, or one that has no hard links.
_NO_HARD_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP)

_INDEX = "index.json"


@dataclasses.dataclass(frozen=True)
class StoredSet:
    """Which stored outcome was used for what; several uses may share one.

    Attributes:
        defence: Name of the model that was scored on it.
        threat_model: What the attacker knew.
        attack: Name of the attack.
        epsilon: Radius, in 1/255; None for an attack that finds its own.
        name: Name of the outcome in the store.
    """

    defence: str
    threat_model: str
    attack: str
    epsilon: float | None
    name: str


@dataclasses.dataclass(frozen=True)
class AdversarialStore:
    """A folder of TFRecord files, each the outcome of one attack on all images.

    A record is a `tf.train.Example`. Its image is the bytes of little-endian float32 values in the
    order (height, width, channels): an 8-bit format would round the perturbation.

    An attack that is under way keeps each finished batch in a file of its own, so that one that is
    killed goes on after the last of them.

    Attributes:
        folder: The folder; made when first written to.
    """

    folder: pathlib.Path

    def path(self, name: str) -> pathlib.Path:
        """Returns the file of the outcome called `name`."""
        return self.folder / f"{name}.tfrecord"

    def _batch_folder(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.batches"

    def write(self, name: str, outcome: AttackOutcome) -> None:
        """Stores `outcome`, whole or not at all, in place of its batches."""
        _write_records(self.path(name), outcome)
        shutil.rmtree(self._batch_folder(name), ignore_errors=True)

    def write_batch(self, name: str, first: int, outcome: AttackOutcome) -> None:
        """Stores the outcome of the consecutive images from `first` on."""
        _write_records(self._batch_folder(name) / f"{first:08d}.tfrecord", outcome)

    def read_batches(self, name: str, image_shape: tuple[int, ...]) -> list[AttackOutcome]:
        """Returns the outcomes of the first images, as far as batches of them are stored.

        Args:
            name: What the batches were written as.
            image_shape: Shape of one image, `(height, width, channels)`.

        Raises:
            SfmError: If a file is damaged.
        """
        outcomes, count = [], 0
        while (path := self._batch_folder(name) / f"{count:08d}.tfrecord").exists():
            outcomes.append(_read_records(path, image_shape))
            count += len(outcomes[-1].images)
        return outcomes

    def read(self, name: str, shape: tuple[int, ...]) -> AttackOutcome | None:
        """Returns the outcome called `name`, or None where there is none.

        Args:
            name: What it was written as.
            shape: The images' shape, `(count, height, width, channels)`.

        Raises:
            SfmError: If the file is damaged or its images are of another number or shape.
        """
        path = self.path(name)
        if not path.exists():
            return None
        outcome = _read_records(path, shape[1:])
        if len(outcome.images) != shape[0]:
            raise SfmError(
                f"{path} holds {len(outcome.images)} images; expected {shape[0]}. {_REMEDY}"
            )
        return outcome

    def link(self, other: "AdversarialStore", names: Iterable[str]) -> None:
        """Makes outcomes of another store this one's too, without a copy where the disk allows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not self.path(name).exists():
                _link(other.path(name), self.path(name))

    def sweep(self) -> None:
        """Removes what a process left that was killed while it wrote."""
        for temporary in self.folder.rglob(".*.tmp"):
            temporary.unlink()
        for batches in self.folder.glob("*.batches"):
            if self.path(batches.stem).exists():
                shutil.rmtree(batches)

    def write_index(self, sets: Sequence[StoredSet]) -> None:
        """Records what each outcome was used for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _INDEX, [dataclasses.asdict(entry) for entry in sets])

    def read_index(self) -> list[StoredSet]:
        """Returns what `write_index` recorded.

        Raises:
            SfmError: If no evaluation has finished in this folder.
        """
        path = self.folder / _INDEX
        try:
            return [StoredSet(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError) as error:
            raise SfmError(f"Cannot read {path} ({error}); run the evaluation again.") from error


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        write_bytes(target, source.read_bytes())


def _write_records(path: pathlib.Path, outcome: AttackOutcome) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for index in range(len(outcome.images)):
                writer.write(_encode(outcome, index))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _read_records(path: pathlib.Path, image_shape: tuple[int, ...]) -> AttackOutcome:
    try:
        records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
        values = tf.io.parse_example(tf.constant(records, tf.string), _FEATURES)
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        raise SfmError(f"Cannot read {path} ({error.message}). {_REMEDY}") from error
    sizes = {len(image) for image in values["image/float32"].numpy()}
    if sizes != {4 * int(np.prod(image_shape))}:
        raise SfmError(
            f"{path} holds images of {sorted(sizes)} bytes; expected shape {image_shape} in "
            f"float32. {_REMEDY}"
        )
    return _decode(values, (len(records), *image_shape))


def _encode(outcome: AttackOutcome, index: int) -> bytes:
    image = outcome.images[index].astype("<f4").tobytes()
    integers = {
        "attack/iterations": int(outcome.iterations[index]),
        "attack/zero_gradient": int(outcome.zero_gradient[index]),
    }
    features = {
        "image/float32": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "attack/loss": tf.train.Feature(
            float_list=tf.train.FloatList(value=[float(outcome.loss[index])])
        ),
        **{
            name: tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
            for name, value in integers.items()
        },
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString()


def _decode(values: dict[str, tf.Tensor], shape: tuple[int, ...]) -> AttackOutcome:
    buffer = b"".join(values["image/float32"].numpy())
    return AttackOutcome(
        images=np.frombuffer(buffer, dtype="<f4").reshape(shape).astype(np.float32),
        loss=values["attack/loss"].numpy(),
        iterations=values["attack/iterations"].numpy().astype(np.int32),
        zero_gradient=values["attack/zero_gradient"].numpy().astype(bool),
    )


@dataclasses.dataclass(frozen=True)
class RemainingImages:
    """The images that earlier attacks did not break, where only the robust accuracy is wanted.

    Attributes:
        name: Name of the set that those attacks made; empty before the first.
        outcome: What they made, one image for each sample.
        rows: Indices of the samples that are still classified as labelled.
    """

    name: str
    outcome: AttackOutcome
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Starts:
    """Where an attack starts that goes on from others.

    Attributes:
        names: The stored sets that the images are from.
        read: Returns the images, float32 of the shape of those that are attacked. It is called only
            where something is left to attack, because it may have to ask a model.
    """

    names: tuple[str, ...]
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class AttackExecution:
    """One attack on one model, with a store that remembers what it made.

    Attributes:
        attack: The attack, its radius set.
        label: The attack's name and radius as a file name may hold them.
        phrase: What the progress line calls it.
        model_digest: Digest of the model that is attacked.
        samples: The images that are attacked.
        store: Where finished sets and batches are kept.
        progress: Told of each batch.
        starts: Where it starts; None for an attack that starts at the images themselves.
    """

    attack: CompiledAttack
    label: str
    phrase: str
    model_digest: str
    samples: Samples
    store: AdversarialStore
    progress: Progress
    starts: Starts | None = None

    def outcome(self, remaining: RemainingImages | None = None) -> tuple[str, AttackOutcome]:
        """Returns the set's name and its images, made now or stored earlier.

        Args:
            remaining: The images to attack; the others stay what earlier attacks made of them. None
                to attack all.

        Raises:
            SfmError: If a stored set is damaged, or memory does not suffice for a single image.
        """
        name = f"{self.label}-{self._fingerprint(remaining)[:16]}"
        outcome = self.store.read(name, self.samples.images.shape)
        if outcome is None:
            outcome = self._attack(name, remaining)
            self.store.write(name, outcome)
        else:
            self.progress(self.phrase, len(self.samples), len(self.samples))
        radius, norm = self.attack.epsilon, float(self.attack.norm)
        found = faults(self.samples.images, outcome.images, radius, norm)
        if found:
            raise SfmError(
                f"Stored set {self.store.path(name)} is not valid: {'; '.join(found)}. Delete it."
            )
        return name, outcome

    def _fingerprint(self, remaining: RemainingImages | None) -> str:
        # The batch size is left out: it changes no image.
        options = [option for option in self.attack.attack_params if option != "batch_size"]
        values: Mapping[str, Any] = {
            "samples": self.samples.digest(),
            "packages": package_versions(),
            "code": code_version(type(self.attack).__module__),
            # The model's digest has its pre-processing by name alone.
            "forward": code_version(defended_model.__name__),
            "model": self.model_digest,
            "attack": type(self.attack).__name__,
            "options": {option: str(getattr(self.attack, option)) for option in options},
            "after": None if remaining is None else [remaining.name, remaining.rows.tolist()],
            **({} if self.starts is None else {"starts": list(self.starts.names)}),
        }
        return fingerprint(values)

    def _attack(self, name: str, remaining: RemainingImages | None) -> AttackOutcome:
        rows = np.arange(len(self.samples)) if remaining is None else remaining.rows
        outcomes = self.store.read_batches(name, self.samples.images.shape[1:])
        done = sum(len(outcome.images) for outcome in outcomes)
        self.progress(self.phrase, done, len(rows))
        while done < len(rows):
            for outcome in self._batches(rows[done:]):
                self.store.write_batch(name, done, outcome)
                outcomes.append(outcome)
                done += len(outcome.images)
                self.progress(self.phrase, done, len(rows))
        return _merge(outcomes, remaining) if remaining else join_outcomes(outcomes)

    def _batches(self, rows: np.ndarray) -> Iterator[AttackOutcome]:
        """Yields the outcomes of as many batches as memory allows; halves them where it fails."""
        images, labels = self.samples.images[rows], self.samples.labels[rows]
        starts = {} if self.starts is None else {"starts": self.starts.read()[rows]}
        try:
            yield from self.attack.batches(images, labels, positions=rows, **starts)
        except tf.errors.ResourceExhaustedError as error:
            size = self.attack.batch_size
            if size == 1:
                raise SfmError(
                    f"Out of memory in {self.phrase} with a single image; give a smaller "
                    "--attack_batch_size or use a smaller model."
                ) from error
            self.attack.set_params(batch_size=size // 2)
            phrase = f"{self.phrase}: out of memory at batch {size}, going on with {size // 2}"
            self.progress(phrase, 0, len(rows))


def _merge(outcomes: list[AttackOutcome], remaining: RemainingImages) -> AttackOutcome:
    if not outcomes:
        return remaining.outcome
    made, merged = join_outcomes(outcomes), {}
    for field in dataclasses.fields(AttackOutcome):
        merged[field.name] = getattr(remaining.outcome, field.name).copy()
        merged[field.name][remaining.rows] = getattr(made, field.name)
    return AttackOutcome(**merged)
