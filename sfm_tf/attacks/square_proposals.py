"""What the Square attack tries next: squares of one colour, or bumps that keep the L2 norm."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sfm_tf.attacks.compiled_attack import AttackBatch

_IMAGE_AXES = (1, 2, 3)
_WINDOW_AXES = (1, 2)
# The first L2 proposal has this many bumps from one edge to the other.
_TILES = 5
_SMALLEST_BUMP = 3


class Proposal(NamedTuple):
    """How the search moves under a norm.

    Attributes:
        fit_sides: Maps the int sides of all queries, in pixels, and the shorter edge of the image
            to those of the windows that are used.
        number_count: Numbers that a proposal takes for each image beside one for each channel.
        begin: Maps a batch, seeds `(batch, 2)` and the radius to the images tried first.
        propose: Maps numbers in [0, 1) of shape `(batch, number_count + channels)`, the side of
            this query's window, the best images so far, a batch and the radius to the images tried
            next. All images are allowed ones.
    """

    fit_sides: Callable[[np.ndarray, int], np.ndarray]
    number_count: int
    begin: Callable[[AttackBatch, tf.Tensor, tf.Tensor], tf.Tensor]
    propose: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, AttackBatch, tf.Tensor], tf.Tensor]


def _fit_squares(sides: np.ndarray, edge: int) -> np.ndarray:
    return np.clip(sides, 1, edge)


def _begin_with_stripes(batch: AttackBatch, seeds: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    """Returns images with columns of plus or minus the radius."""
    stripes = _sign(_uniforms((1, *batch.images.shape[2:]), seeds))
    return _in_box(batch.images + epsilon * stripes, batch, epsilon)


def _propose_square(
    numbers: tf.Tensor, side: tf.Tensor, best: tf.Tensor, batch: AttackBatch, epsilon: tf.Tensor
) -> tf.Tensor:
    """Moves a square, each channel with a sign of its own, to an end of the ball."""
    rows, columns = _offsets(numbers[:, 0], numbers[:, 1], side, batch.images.shape)
    inside = _is_inside(rows, columns, side)[..., None]
    change = tf.where(inside, _sign(numbers[:, None, None, 2:]), 0.0)
    return _in_box(best + 2.0 * epsilon * change, batch, epsilon)


def _in_box(images: tf.Tensor, batch: AttackBatch, epsilon: tf.Tensor) -> tf.Tensor:
    low, high = batch.images - epsilon, batch.images + epsilon
    images = tf.clip_by_value(tf.clip_by_value(images, low, high), 0.0, 1.0)
    return tf.where(batch.mask != 0.0, images, batch.images)


def _fit_bumps(sides: np.ndarray, edge: int) -> np.ndarray:
    odd = np.maximum(sides, _SMALLEST_BUMP) // 2 * 2 + 1
    return np.minimum(odd, edge - (1 - edge % 2))


def _begin_with_bumps(batch: AttackBatch, seeds: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    """Returns images under a grid of bumps, each with its own direction and signs."""
    height, width, channels = batch.images.shape[1:]
    side = max(min(height, width) // _TILES, 1)
    rows, columns = height // side, width // side
    numbers = _uniforms((rows, 1, columns, 1, channels + 1), seeds)
    bump = make_bump(tf.constant(side), side)[:, None, :, None]
    lying = tf.transpose(bump, (2, 1, 0, 3))
    tiles = _sign(numbers[..., 1:]) * tf.where(numbers[..., :1] < 0.5, bump, lying)
    grid = tf.reshape(tiles, (-1, rows * side, columns * side, channels))
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    bumps = tf.image.pad_to_bounding_box(grid, top, left, height, width)
    return _on_sphere(bumps, batch, epsilon)


def _propose_bump(
    numbers: tf.Tensor, side: tf.Tensor, best: tf.Tensor, batch: AttackBatch, epsilon: tf.Tensor
) -> tf.Tensor:
    """Clears one window and adds a bump to another with the norm that this sets free."""
    shape, change = batch.images.shape, best - batch.images
    rows, columns = _offsets(numbers[:, 0], numbers[:, 1], side, shape)
    gains = _is_inside(rows, columns, side)[..., None]
    loses = _is_inside(*_offsets(numbers[:, 2], numbers[:, 3], side, shape), side)[..., None]
    bump = _place_bump(rows, columns, numbers[:, 4], side, min(shape[1:3]))
    old = _unit(tf.where(gains, change, 0.0), _WINDOW_AXES)
    new = _unit(
        tf.where(gains, bump[..., None] * _sign(numbers[:, None, None, 5:]) + old, 0.0),
        _WINDOW_AXES,
    )
    unused = tf.nn.relu(epsilon**2 - _squared_norm(change, _IMAGE_AXES)) / float(shape[3])
    freed = _squared_norm(tf.where(gains | loses, change, 0.0), _WINDOW_AXES)
    change = tf.where(gains, tf.sqrt(unused + freed) * new, tf.where(loses, 0.0, change))
    return _on_sphere(change, batch, epsilon)


def _place_bump(
    rows: tf.Tensor, columns: tf.Tensor, numbers: tf.Tensor, side: tf.Tensor, edge: int
) -> tf.Tensor:
    """Returns a bump for each image, `(batch, height, width)`: every other one lying."""
    down, across = rows[:, :, None], columns[:, None, :]
    stands = numbers[:, None, None] < 0.5
    place = tf.where(stands, down * edge + across, across * edge + down)
    bump = tf.reshape(make_bump(side, edge), [-1])
    inside = _is_inside(rows, columns, side)
    return tf.where(inside, tf.gather(bump, tf.where(inside, place, 0)), 0.0)


def make_bump(side: tf.Tensor, edge: int) -> tf.Tensor:
    """Returns two hills of norm 1 together, of which the lower one is negative.

    Andriushchenko et al. 2020, section 3.4: each hill falls off from its centre by
    sum over k of 1 / (k + 1)^2, k from the distance to the centre, in squares around it, to half
    the side.

    Args:
        side: Int scalar, at most `edge`: rows and columns of the bump.
        edge: Rows and columns of what is returned.

    Returns:
        Float32 of shape `(edge, edge)`, zero outside the first `side` rows and columns.
    """
    terms = 1.0 / np.arange(1, edge + 2, dtype=np.float64) ** 2
    sums = tf.constant(np.concatenate([[0.0], np.cumsum(terms)]), tf.float32)
    half, places = side // 2, tf.range(edge)
    is_upper = places < half
    # The centre of the hill that a row belongs to.
    centre = tf.where(is_upper, half // 2, half + (side - half) // 2)
    down, across = tf.abs(places - centre)[:, None], tf.abs(places - half)[None, :]
    height = tf.gather(sums, half + 1) - tf.gather(sums, tf.minimum(tf.maximum(down, across), half))
    inside = (places < side)[:, None] & (places < side)[None, :]
    hills = [inside & is_upper[:, None], inside & ~is_upper[:, None]]
    upper, lower = (_unit(tf.where(hill, height, 0.0), (0, 1)) for hill in hills)
    return _unit(upper - lower, (0, 1))


def _on_sphere(change: tf.Tensor, batch: AttackBatch, epsilon: tf.Tensor) -> tf.Tensor:
    """Returns images of a perturbation scaled to the radius; clipping then only shortens it."""
    change = epsilon * _unit(tf.where(batch.mask != 0.0, change, 0.0), _IMAGE_AXES)
    return tf.clip_by_value(batch.images + change, 0.0, 1.0)


def _squared_norm(values: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    return tf.reduce_sum(values**2, axis=axes, keepdims=True)


def _unit(values: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    return tf.math.divide_no_nan(values, tf.sqrt(_squared_norm(values, axes)))


def _offsets(
    vertical: tf.Tensor, horizontal: tf.Tensor, side: tf.Tensor, shape: tf.TensorShape
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns how far rows and columns are from a window's first ones: int32 of two dimensions."""

    def offsets(numbers: tf.Tensor, size: int) -> tf.Tensor:
        first = tf.cast(numbers * tf.cast(size - side + 1, tf.float32), tf.int32)
        return tf.range(size) - first[:, None]

    return offsets(vertical, shape[1]), offsets(horizontal, shape[2])


def _is_inside(rows: tf.Tensor, columns: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    inside_rows, inside_columns = ((o >= 0) & (o < side) for o in (rows, columns))
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def _sign(numbers: tf.Tensor) -> tf.Tensor:
    return tf.where(numbers < 0.5, -1.0, 1.0)


def _uniforms(shape: tuple[int, ...], seeds: tf.Tensor) -> tf.Tensor:
    return tf.map_fn(
        lambda seed: tf.random.stateless_uniform(shape, seed),
        seeds,
        fn_output_signature=tf.float32,
    )


_LINF = Proposal(_fit_squares, 2, _begin_with_stripes, _propose_square)
_L2 = Proposal(_fit_bumps, 5, _begin_with_bumps, _propose_bump)

PROPOSALS: Mapping[float | str, Proposal] = {math.inf: _LINF, "inf": _LINF, 2: _L2}
"""The proposals by the norm's order, as ART names it."""
