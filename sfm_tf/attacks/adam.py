"""Adam as a pure function, for descents inside a compiled loop."""

from typing import NamedTuple

import tensorflow as tf

_DECAY = 0.9
_SQUARE_DECAY = 0.999
_STABILITY = 1e-8


class Moments(NamedTuple):
    """Running means of the gradient and of its square, of the points' shape."""

    mean: tf.Tensor
    square: tf.Tensor


def initial_moments(points: tf.Tensor) -> Moments:
    """Returns the moments before the first step."""
    return Moments(tf.zeros_like(points), tf.zeros_like(points))


def adam_step(
    moments: Moments, gradient: tf.Tensor, done: tf.Tensor, learning_rate: tf.Tensor
) -> tuple[tf.Tensor, Moments]:
    """Returns what to add to the points, and the new moments.

    Kingma and Ba, "Adam: a method for stochastic optimization", 2015, section 2, in the more
    efficient order of its last paragraph and with its settings.

    Args:
        moments: The moments so far.
        gradient: Float32 of any shape.
        done: Int32 number of steps already taken.
        learning_rate: Size of the step, about the most that a point moves.
    """
    count = tf.cast(done + 1, tf.float32)
    mean = _DECAY * moments.mean + (1.0 - _DECAY) * gradient
    square = _SQUARE_DECAY * moments.square + (1.0 - _SQUARE_DECAY) * gradient**2
    size = learning_rate * tf.sqrt(1.0 - _SQUARE_DECAY**count) / (1.0 - _DECAY**count)
    return -size * mean / (tf.sqrt(square) + _STABILITY), Moments(mean, square)
