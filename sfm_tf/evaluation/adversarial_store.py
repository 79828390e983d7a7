"""Adversarial images on disk, stored once per gradient source, attack and radius."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from sfm_tf.artifacts.atomic_files import sync_folder, write_json
from sfm_tf.attacks.compiled_attack import AttackOutcome
from sfm_tf.errors import SfmError

_FEATURES = {
    "image/float32": tf.io.FixedLenFeature([], tf.string),
    "attack/loss": tf.io.FixedLenFeature([], tf.float32),
    "attack/iterations": tf.io.FixedLenFeature([], tf.int64),
    "attack/zero_gradient": tf.io.FixedLenFeature([], tf.int64),
}


_INDEX = "index.json"


@dataclasses.dataclass(frozen=True)
class StoredSet:
    """Which stored outcome was used for what; several uses may share one.

    Attributes:
        defence: Name of the model that was scored on it.
        threat_model: What the attacker knew.
        attack: Name of the attack.
        epsilon: Radius, in 1/255.
        name: Name of the outcome in the store.
    """

    defence: str
    threat_model: str
    attack: str
    epsilon: float
    name: str


@dataclasses.dataclass(frozen=True)
class AdversarialStore:
    """A folder of TFRecord files, each the outcome of one attack on all images.

    A record is a `tf.train.Example`. Its image is the bytes of little-endian float32 values in the
    order (height, width, channels): an 8-bit format would round the perturbation.

    Attributes:
        folder: The folder; made when first written to.
    """

    folder: pathlib.Path

    def path(self, name: str) -> pathlib.Path:
        """Returns the file of the outcome called `name`."""
        return self.folder / f"{name}.tfrecord"

    def write(self, name: str, outcome: AttackOutcome) -> None:
        """Stores `outcome`, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                for index in range(len(outcome.images)):
                    writer.write(_encode(outcome, index))
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(self.folder)
        finally:
            temporary.unlink(missing_ok=True)

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
        remedy = "Delete it and run the evaluation again."
        try:
            records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
            values = tf.io.parse_example(tf.constant(records, tf.string), _FEATURES)
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
            raise SfmError(f"Cannot read {path} ({error.message}). {remedy}") from error
        sizes = {len(image) for image in values["image/float32"].numpy()}
        if len(records) != shape[0] or sizes != {4 * int(np.prod(shape[1:]))}:
            raise SfmError(
                f"{path} holds {len(records)} images of {sorted(sizes)} bytes; expected shape "
                f"{shape} in float32. {remedy}"
            )
        return _decode(values, shape)

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
