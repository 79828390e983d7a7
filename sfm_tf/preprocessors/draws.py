"""Where the random choices of a defence come from: a keyed hash of the image, or fresh chance."""

import dataclasses
import hashlib
import struct
from typing import Protocol

import tensorflow as tf

KEY_BYTES = 16
"""Length of a key: 128 bits."""

PUBLIC_KEY = bytes(KEY_BYTES)
"""The key of an evaluation, known to all. What is served has a key of its own."""

_SCORED_KEY = b"fresh, as scored"
_ATTACKED_KEY = b"fresh, attacked."

_SEED_BITS = 31


class Draws(Protocol):
    """Who draws, and how: what gives each image the seeds of its random choices."""

    @property
    def name(self) -> str:
        """Tells it apart from other draws; a key is not to be read from it."""

    def seeds(self, images: tf.Tensor) -> tf.Tensor:
        """Returns a pair of seeds for each image.

        Args:
            images: Float32 of shape `(batch, height, width, channels)`; the batch may be unknown or
                empty.

        Returns:
            Int32 of shape `(batch, 2)`, not negative.
        """

    def for_attacker(self) -> "Draws":
        """Returns the draws of whoever knows or asks the model as an evaluation attacks it."""

    def for_service(self, key: bytes) -> "Draws":
        """Returns the draws of the model that is served, given a secret key of 16 bytes."""


@dataclasses.dataclass(frozen=True)
class KeyedDraws:
    """The seeds are a keyed hash of the image: SipHash-2-4 (Aumasson and Bernstein 2012).

    An image has the same seeds in every batch and process, and the change of one bit gives
    unrelated ones. So answers are repeatable. Who does not have the key cannot compute them, but
    who may ask the model can look for an image whose draws suit him. That is why an evaluation
    attacks this very function.

    Attributes:
        key: 16 bytes.
    """

    key: bytes = dataclasses.field(default=PUBLIC_KEY, repr=False)

    @property
    def name(self) -> str:
        """A digest of the key."""
        return f"keyed {hashlib.sha256(self.key).hexdigest()[:16]}"

    def seeds(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the hash of each image's shape and values, as two numbers of 31 bits."""
        return _halves(_keyed_hashes(images, self.key))

    def for_attacker(self) -> "KeyedDraws":
        """Returns these: an attacker faces the function that is scored."""
        return self

    def for_service(self, key: bytes) -> "KeyedDraws":
        """Returns the same function with a key that nobody knows."""
        return KeyedDraws(key)


@dataclasses.dataclass(frozen=True)
class RepeatableFreshDraws:
    """Stands in for fresh draws where figures are to be repeatable: in an evaluation.

    Nobody knows fresh draws in advance. So the attacker's seeds are others than those that are
    scored, and equal images side by side in his batch get different ones, so that he can average
    gradients over draws (EOT, Athalye et al. 2018).

    Attributes:
        is_attacker: Whether these are the attacker's.
    """

    is_attacker: bool = False

    @property
    def name(self) -> str:
        """Whose draws they are."""
        return f"fresh, {'attacked' if self.is_attacker else 'scored'}"

    def seeds(self, images: tf.Tensor) -> tf.Tensor:
        """Returns a hash of each image; for the attacker, also of its place among equal ones."""
        if not self.is_attacker:
            return _halves(_keyed_hashes(images, _SCORED_KEY))
        hashes = _keyed_hashes(images, _ATTACKED_KEY)
        # Looks go to the high half, which is the first seed.
        return _halves(hashes + _look_numbers(hashes) * (1 << _SEED_BITS))

    def for_attacker(self) -> "RepeatableFreshDraws":
        """Returns other draws."""
        return RepeatableFreshDraws(is_attacker=True)

    def for_service(self, key: bytes) -> "FreshDraws":
        """Returns draws that nobody can repeat; they have no key."""
        del key
        return FreshDraws()


@dataclasses.dataclass(frozen=True)
class FreshDraws:
    """New seeds at every call, from the generator of the process that runs the graph."""

    name = "fresh, served"

    def seeds(self, images: tf.Tensor) -> tf.Tensor:
        """Returns seeds that have nothing to do with the images."""
        # The operation itself, because TensorFlow's function would write a global seed into the
        # graph, and every server would start with the same draws.
        return tf.raw_ops.RandomUniformInt(
            shape=[tf.shape(images)[0], 2],
            minval=0,
            maxval=tf.int32.max,
            seed=0,
            seed2=0,
        )

    def for_attacker(self) -> "FreshDraws":
        """Returns these."""
        return self

    def for_service(self, key: bytes) -> "FreshDraws":
        """Returns these."""
        del key
        return self


def _keyed_hashes(images: tf.Tensor, key: bytes) -> tf.Tensor:
    """Returns a hash of each image from 0 to 2^62 - 1, int64 of shape `(batch,)`."""
    images = tf.stop_gradient(tf.cast(images, tf.float32))
    values = tf.map_fn(tf.io.serialize_tensor, images, fn_output_signature=tf.string)
    return tf.strings.to_hash_bucket_strong(
        values, 1 << (2 * _SEED_BITS), key=list(struct.unpack("<2q", key))
    )


def _halves(hashes: tf.Tensor) -> tf.Tensor:
    """Returns the high and the low 31 of 62 bits, int32 of shape `(batch, 2)`."""
    size = 1 << _SEED_BITS
    pair = tf.stack([hashes // size % size, hashes % size], axis=1)
    return tf.cast(pair, tf.int32)


def _look_numbers(hashes: tf.Tensor) -> tf.Tensor:
    """Returns how many equal values stand directly before each, int64 of shape `(batch,)`."""
    positions = tf.range(tf.size(hashes, tf.int64))
    differs = tf.cast(hashes[1:] != hashes[:-1], tf.int64)
    runs = tf.pad(tf.math.cumsum(differs), [[1, 0]])[: tf.size(positions)]
    return positions - tf.gather(tf.math.segment_min(positions, runs), runs)
