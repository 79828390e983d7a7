"""The sets of allowed perturbations: balls around zero in a norm, per image."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

_IMAGE_AXES = (1, 2, 3)


class Ball(NamedTuple):
    """What a gradient attack needs to know of a norm.

    Attributes:
        project: Maps perturbations `(batch, height, width, channels)` and a radius to the nearest
            perturbations inside the ball.
        steepest: Maps gradients of that shape to the perturbations of norm 1 along which the
            linearised loss grows fastest; zero where the gradient is zero.
        sample: Maps one image's shape and a seed of shape `(2,)` to a point drawn uniformly from
            the ball of radius 1.
    """

    project: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    steepest: Callable[[tf.Tensor], tf.Tensor]
    sample: Callable[[tf.TensorShape, tf.Tensor], tf.Tensor]


def _project_linf(perturbation: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(perturbation, -radius, radius)


def _sample_linf(shape: tf.TensorShape, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, minval=-1.0, maxval=1.0)


def _l2_norm(values: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_sum(values**2, axis=_IMAGE_AXES, keepdims=True))


def _project_l2(perturbation: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
    return perturbation * tf.minimum(1.0, tf.math.divide_no_nan(radius, _l2_norm(perturbation)))


def _steepest_l2(gradient: tf.Tensor) -> tf.Tensor:
    # Scaled by its largest entry first: the squares of a small gradient would underflow to zero.
    largest = tf.reduce_max(tf.abs(gradient), axis=_IMAGE_AXES, keepdims=True)
    scaled = tf.math.divide_no_nan(gradient, largest)
    return tf.math.divide_no_nan(scaled, _l2_norm(scaled))


def _sample_l2(shape: tf.TensorShape, seed: tf.Tensor) -> tf.Tensor:
    direction = tf.random.stateless_normal(shape, seed)
    # A radius of uniform^(1/dimensions) makes the volume, not the radius, uniform. The second
    # draw needs a seed of its own.
    uniform = tf.random.stateless_uniform((), seed + tf.constant([0, 1 << 30], seed.dtype))
    return direction / tf.norm(direction) * uniform ** (1.0 / shape.num_elements())


_LINF = Ball(_project_linf, tf.sign, _sample_linf)
_L2 = Ball(_project_l2, _steepest_l2, _sample_l2)

BALLS: Mapping[float | str, Ball] = {math.inf: _LINF, "inf": _LINF, 2: _L2}
"""The balls by the norm's order, as ART names it."""


def sample_points(ball: Ball, shape: tf.TensorShape, seeds: tf.Tensor) -> tf.Tensor:
    """Draws one point of the unit ball per image, each from its own seed.

    So an image's point does not depend on the batch it is in.

    Args:
        ball: The ball.
        shape: Shape of one image.
        seeds: Integers of shape `(batch, 2)`.

    Returns:
        Float32 of shape `(batch, *shape)`.
    """
    return tf.map_fn(lambda seed: ball.sample(shape, seed), seeds, fn_output_signature=tf.float32)
