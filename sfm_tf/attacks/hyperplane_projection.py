"""The shortest ways from images to a hyperplane within [0, 1], and the step made of two."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

_IMAGE_AXES = (1, 2, 3)
# Of the authors' code: at two distances of zero it makes alpha 1/2, and nothing NaN.
_SMALLEST_NORM = 1e-8


class Hyperplane(NamedTuple):
    """One linear function per image; it is zero on the hyperplane.

    Attributes:
        values: Float32 `(batch,)`: the functions at some images.
        gradients: Float32 of the images' shape.
    """

    values: tf.Tensor
    gradients: tf.Tensor


class HyperplaneGeometry(NamedTuple):
    """What an attack that aims at hyperplanes needs to know of a norm.

    Attributes:
        way: Maps images in [0, 1] `(batch, height, width, channels)` and their hyperplanes to the
            smallest perturbations that reach the hyperplanes and leave the images in [0, 1]. Where
            there is none, each pixel goes to the end of [0, 1] nearer to the hyperplane. A pixel
            of gradient zero stays as it is.
        norm: Maps perturbations to their norms, `(batch,)`.
        dual_norm: Maps gradients to their dual norms, `(batch,)`: without limits on the pixels,
            the distance to a hyperplane is |value| / dual norm.
    """

    way: Callable[[tf.Tensor, Hyperplane], tf.Tensor]
    norm: Callable[[tf.Tensor], tf.Tensor]
    dual_norm: Callable[[tf.Tensor], tf.Tensor]


class _Demand(NamedTuple):
    """By how much the pixels may change, and what that brings.

    Attributes:
        needed: What all pixels together have to bring, `(batch, 1)`.
        slopes: What each brings per unit of its change, `(batch, pixels)`, at most 1.
        rooms: How far each can go, same shape.
        signs: Which way each goes: -1, 0 or 1, same shape.
    """

    needed: tf.Tensor
    slopes: tf.Tensor
    rooms: tf.Tensor
    signs: tf.Tensor


def _way_linf(images: tf.Tensor, plane: Hyperplane) -> tf.Tensor:
    demand = _demand(images, plane)
    level = _level(demand.rooms, demand.slopes, demand)
    change = demand.signs * tf.minimum(level, demand.rooms)
    return tf.reshape(change, tf.shape(images))


def _way_l2(images: tf.Tensor, plane: Hyperplane) -> tf.Tensor:
    demand = _demand(images, plane)
    limits = tf.math.divide_no_nan(demand.rooms, demand.slopes)
    level = _level(limits, demand.slopes**2, demand)
    # An infinite level leaves pixels that do not count alone.
    lengths = tf.math.multiply_no_nan(level, demand.slopes)
    change = demand.signs * tf.minimum(lengths, demand.rooms)
    return tf.reshape(change, tf.shape(images))


def _demand(images: tf.Tensor, plane: Hyperplane) -> _Demand:
    pixels = tf.reshape(images, (tf.shape(images)[0], -1))
    gradients = tf.reshape(plane.gradients, tf.shape(pixels))
    # Scaled to a largest slope of 1: the squares of a small gradient would underflow to zero.
    largest = tf.reduce_max(tf.abs(gradients), axis=1, keepdims=True)
    signs = -tf.sign(plane.values)[:, None] * tf.sign(gradients)
    return _Demand(
        needed=tf.math.divide_no_nan(tf.abs(plane.values)[:, None], largest),
        slopes=tf.math.divide_no_nan(tf.abs(gradients), largest),
        rooms=tf.where(signs > 0.0, 1.0 - pixels, pixels),
        signs=signs,
    )


def _level(limits: tf.Tensor, weights: tf.Tensor, demand: _Demand) -> tf.Tensor:
    """Returns the level at which sum(weights * min(level, limits)) is `needed`, `(batch, 1)`.

    That sum is concave and piecewise linear in the level, so Newton's method from zero never goes
    too far, and it ends, exactly, once no further pixel has come to its limit. If the sum never
    becomes that large, the level is no less than the largest limit.
    """
    at_limit = demand.slopes * demand.rooms

    def rise(level: tf.Tensor, is_rising: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        del is_rising
        is_full = limits <= level
        brought = tf.reduce_sum(tf.where(is_full, at_limit, 0.0), axis=1, keepdims=True)
        steepness = tf.reduce_sum(tf.where(is_full, 0.0, weights), axis=1, keepdims=True)
        higher = tf.math.divide_no_nan(demand.needed - brought, steepness)
        return tf.maximum(level, higher), tf.reduce_any(higher > level)

    level, _ = tf.while_loop(
        lambda _, is_rising: is_rising, rise, (tf.zeros_like(demand.needed), tf.constant(True))
    )
    return level


def _linf_norm(perturbations: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.abs(perturbations), axis=_IMAGE_AXES)


def _l1_norm(gradients: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.abs(gradients), axis=_IMAGE_AXES)


def _l2_norm(values: tf.Tensor) -> tf.Tensor:
    largest = _linf_norm(values)
    scaled = tf.math.divide_no_nan(values, largest[:, None, None, None])
    return largest * tf.sqrt(tf.reduce_sum(scaled**2, axis=_IMAGE_AXES))


_LINF = HyperplaneGeometry(_way_linf, _linf_norm, _l1_norm)
_L2 = HyperplaneGeometry(_way_l2, _l2_norm, _l2_norm)

HYPERPLANE_GEOMETRIES: Mapping[float | str, HyperplaneGeometry] = {
    math.inf: _LINF,
    "inf": _LINF,
    2: _L2,
}
"""The geometries by the norm's order, as ART names it.

The ways are the projections of Croce and Hein, "Minimally distorted adversarial examples with a
fast adaptive boundary attack", 2020, section 2.2. The authors' code sorts the pixels by when they
come to their limits; Newton's method comes to the same in four to nine sums over them.
"""


def biased_step(
    geometry: HyperplaneGeometry,
    images: tf.Tensor,
    points: tf.Tensor,
    plane: Hyperplane,
    alpha_max: tf.Tensor,
    eta: tf.Tensor,
) -> tf.Tensor:
    """Returns points next to the hyperplane, drawn towards its points nearest to the images.

    Croce and Hein 2020, section 2.3: the projections of `points` and of `images`, mixed with the
    weights 1 - alpha and alpha, where alpha is the share of the points' distance in the sum of both
    distances, but at most `alpha_max`. They are not limited to [0, 1].

    Args:
        geometry: The norm that measures distances.
        images: Float32 in [0, 1], `(batch, height, width, channels)`.
        points: Float32 in [0, 1], same shape.
        plane: The hyperplanes, with their values at `points`.
        alpha_max: Float32 scalar in [0, 1].
        eta: Float32 scalar, at least 1: by which factor to exceed the way to the hyperplane.
    """
    product = tf.reduce_sum(plane.gradients * (images - points), axis=_IMAGE_AXES)
    plane_from_images = plane._replace(values=plane.values + product)
    ways = (geometry.way(points, plane), geometry.way(images, plane_from_images))
    length, image_length = (tf.maximum(geometry.norm(way), _SMALLEST_NORM) for way in ways)
    alpha = tf.minimum(length / (length + image_length), alpha_max)[:, None, None, None]
    return (1.0 - alpha) * (points + eta * ways[0]) + alpha * (images + eta * ways[1])
