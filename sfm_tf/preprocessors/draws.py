"""Seeds for the random choices of a defence, computed from the image alone."""

import enum

import numpy as np
import tensorflow as tf


class Draws(enum.Enum):
    """Who draws: an attacker knows how a defence draws, but not what it will draw.

    The defended model draws as `SERVED` when it answers. An attacker draws as `ATTACKER`, which
    gives other draws. Equal images side by side in the attacker's batch get different draws, so
    that gradients can be averaged over them (EOT, Athalye et al. 2018).
    """

    SERVED = 0
    ATTACKER = 1


_MODULUS = 2**31 - 1


def image_seeds(images: tf.Tensor, draws: Draws) -> tf.Tensor:
    """Returns a pair of seeds for each image, a hash of its values.

    An image has the same seeds in every batch, and the change of one bit gives unrelated ones. So
    the answers of a random defence are repeatable, and the defence draws anew for an image that an
    attack has changed.

    Args:
        images: Float32 of shape `(batch, height, width, channels)`, of known shape but for the
            batch.
        draws: Who draws. For the attacker, equal images next to each other in the batch have
            different seeds.

    Returns:
        Int32 of shape `(batch, 2)`, from 0 to 2^31 - 2.
    """
    bits = tf.cast(tf.bitcast(tf.cast(images, tf.float32), tf.int32), tf.int64)
    # The shape is static, but for the batch, which may be empty.
    bits = tf.reshape(bits, [tf.shape(images)[0], int(np.prod(images.shape[1:]))])
    factors = np.random.default_rng(draws.value).integers(1, _MODULUS, (2, bits.shape[1]))
    # Sums of 64-bit products wrap around alike on every device.
    hashes = tf.stack([tf.reduce_sum(bits * row, axis=1) for row in factors], axis=1)
    if draws is Draws.ATTACKER:
        hashes += tf.constant([0, 1 << 20], tf.int64) * _look_numbers(hashes)[:, tf.newaxis]
    return tf.cast(tf.math.floormod(hashes, _MODULUS), tf.int32)


def _look_numbers(hashes: tf.Tensor) -> tf.Tensor:
    """Returns how many equal rows stand directly before each row, int64 of shape `(batch,)`."""
    positions = tf.range(tf.shape(hashes, tf.int64)[0])
    differs = tf.reduce_any(hashes[1:] != hashes[:-1], axis=1)
    runs = tf.pad(tf.math.cumsum(tf.cast(differs, tf.int64)), [[1, 0]])[: tf.size(positions)]
    return positions - tf.gather(tf.math.segment_min(positions, runs), runs)
