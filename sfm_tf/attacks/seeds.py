"""Random numbers of each image that do not depend on the batch it is in."""

import tensorflow as tf


def numbered(seeds: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Returns seeds for the run or the draw of this number; those given, for number 0.

    Args:
        seeds: Integers of shape `(batch, 2)`, the first one from 0 to 2^31 - 1.
        number: Integer scalar from 0 to 2^31 - 1.

    Returns:
        Int64 of shape `(batch, 2)`.
    """
    # A seed fills less than 32 bits; the number goes above them.
    above = tf.stack([tf.cast(number, tf.int64) * 2**32, tf.constant(0, tf.int64)])
    return tf.cast(seeds, tf.int64) + above


def uniforms_by_step(
    seeds: tf.Tensor, iterations: tf.Tensor, samples: int, count: int
) -> tf.Tensor:
    """Returns a row of `count` numbers for each step and each sample of an image.

    All are drawn at once, because drawing for one image after another takes long enough not to be
    done in every step.

    Args:
        seeds: Integers of shape `(batch, 2)`, the second one from 0 to 2^29 - 1.
        iterations: Int32 scalar: number of steps.
        samples: How often the model is shown each image in a step.
        count: Numbers per sample.

    Returns:
        Float32 in [0, 1) of shape `(iterations, batch * samples, count)`, the samples of one image
        next to each other.
    """
    rows = tf.shape(seeds)[0] * samples
    if count == 0:
        return tf.zeros((iterations, rows, 0))
    # Apart from the seeds of the random start.
    seeds = seeds + tf.constant([0, 1 << 29], seeds.dtype)
    numbers = tf.map_fn(
        lambda seed: tf.random.stateless_uniform((iterations, samples, count), seed),
        seeds,
        fn_output_signature=tf.float32,
    )
    return tf.reshape(tf.transpose(numbers, (1, 0, 2, 3)), (iterations, rows, count))
