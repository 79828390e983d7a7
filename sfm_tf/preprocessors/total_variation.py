"""Total variation minimisation (Guo et al. 2018, section 4.2), and a smooth stand-in."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from sfm_tf.preprocessors.operation import static_image_shape

SMOOTH_ROUNDS = 8
SMOOTH_LENGTH = 0.03

TOLERANCE = 1e-3
MAX_ITERATIONS = 200
PENALTY = 2.5
FILL_ROUNDS = 8

Pair = tuple[tf.Tensor, tf.Tensor]
"""Of each pixel with the one below, and with the one to the right."""


def minimise_total_variation(
    images: tf.Tensor, seeds: tf.Tensor, drop_percent: int, weight_thousandths: int
) -> tf.Tensor:
    """Drops random values, and paints the simplest image that agrees with the others.

    Guo et al., "Countering adversarial images using input transformations", 2018, section 4.2, drop
    each value of each channel with probability 0.5 and weigh the total variation by 0.03; see
    `solve_total_variation` for what is minimised and where it departs from their code. That code
    moreover counts values that are 0 as kept, because it drops by setting to 0; here, as in the
    paper, whether a value is dropped does not depend on it.

    Args:
        images: float32 of shape `(batch, height, width, channels)` in [0, 1]; the batch may be
            unknown or empty.
        seeds: int32 of shape `(batch, 2)`: what is dropped from an image depends on its own only.
        drop_percent: Probability in percent with which a value is dropped, from 0 to 99.
        weight_thousandths: Weight of the total variation in 1/1000, at least 1.

    Returns:
        float32 in [0, 1], same shape as `images`.

    Raises:
        SfmError: If height, width or channels are unknown.
    """
    kept = _draw_kept(images, seeds, drop_percent)
    solution = solve_total_variation(images, kept, weight_thousandths / 1000.0)
    return tf.clip_by_value(solution, 0.0, 1.0)


def minimise_total_variation_smoothly(
    images: tf.Tensor, seeds: tf.Tensor, drop_percent: int, weight_thousandths: int
) -> tf.Tensor:
    """Approximates `minimise_total_variation`, with the same values dropped, differentiably.

    A few rounds of lagged diffusivity (Vogel and Oman 1996) on the total variation with gradients
    of length `sqrt(s^2 + SMOOTH_LENGTH^2)`: each pixel becomes the average of its kept value and
    its neighbours, weighted by the inverse of the lengths from the round before. The weights are
    differentiated, too.

    Args:
        images: float32 of shape `(batch, height, width, channels)` in [0, 1]; the batch may be
            unknown or empty.
        seeds: int32 of shape `(batch, 2)`.
        drop_percent: Probability in percent with which a value is dropped, from 0 to 99.
        weight_thousandths: Weight of the total variation in 1/1000, at least 1.

    Returns:
        float32 in [0, 1], same shape as `images`.

    Raises:
        SfmError: If height, width or channels are unknown.
    """
    kept = _to_planes(_draw_kept(images, seeds, drop_percent))
    values = _to_planes(images) * kept
    u = _fill_dropped(values, kept)
    for _ in range(SMOOTH_ROUNDS):
        u = _diffuse(u, values, kept, weight_thousandths / 1000.0)
    return _from_planes(u, images.shape[-1])


def _draw_kept(images: tf.Tensor, seeds: tf.Tensor, drop_percent: int) -> tf.Tensor:
    """Draws a one for each value that is kept and a zero for each that is dropped."""
    shape = static_image_shape(images)
    draws = tf.map_fn(
        lambda seed: tf.random.stateless_uniform(shape, seed),
        seeds,
        fn_output_signature=tf.TensorSpec(shape, tf.float32),
    )
    # Eagerly, an empty batch of draws has lost its other dimensions.
    draws = tf.reshape(draws, tf.shape(images))
    return tf.cast(draws >= drop_percent / 100.0, images.dtype)


def _diffuse(u: tf.Tensor, values: tf.Tensor, kept: tf.Tensor, weight: float) -> tf.Tensor:
    down, right = _differences(u)
    conductivity = weight / tf.sqrt(down * down + right * right + SMOOTH_LENGTH**2)
    # A pixel's conductivity is that of its edges to the pixels below and to the right.
    above, _, left, _ = _neighbors(conductivity)
    below = tf.concat([conductivity[:-1], tf.zeros_like(conductivity[:1])], axis=0)
    beside = tf.concat([conductivity[:, :-1], tf.zeros_like(conductivity[:, :1])], axis=1)
    edges = [above, below, left, beside]
    flow = [edge * neighbor for edge, neighbor in zip(edges, _neighbors(u), strict=True)]
    return (values + tf.add_n(flow)) / (kept + tf.add_n(edges))


def solve_total_variation(
    images: tf.Tensor, kept: tf.Tensor, weight: float, tolerance: float = TOLERANCE
) -> tf.Tensor:
    """Finds the images of least total variation that stay near the kept values of `images`.

    The problem is that of Guo et al., "Countering adversarial images using input transformations",
    2018, section 4.2, as their code poses it, a masked `_denoise_tv_bregman` of scikit-image (split
    Bregman, Goldstein and Osher 2009): for each channel minimise over u

        sum(kept * (u - images)^2) / 2 + weight * sum(|gradient of u|)

    with forward differences, zero beyond the last row and column, whose length s is shrunk
    isotropically to `s (s L / (s L + 1))`, L = 2 / weight, by both codes. Exact would be
    `max(s - 1 / L, 0)`. Theirs minimises a norm that is rounded where it is below a few times
    1 / L, as Huber's is, and so has one solution even where nothing was kept.

    That solution is reached here by another way than in their code:

    - The penalty on gradients other than those of u is `PENALTY`, not L, with the shrinkage of the
      same norm at that penalty: at weight 0.03 about a tenth of the iterations.
    - It starts from dropped values filled from the kept ones around them, not from zeros, and
      sweeps once per iteration, not ten times: over one colour of a chequerboard, then the other,
      not pixel by pixel.
    - An image is finished when no value changed by more than `tolerance`. Theirs is when the root
      mean square of the changes is below 0.01, often far from the solution. The largest change does
      not depend on the order of a sum, and so not on the batch that an image is in.
    - A dropped value at the border tends to the mean of its two or three neighbours. Theirs divides
      their sum by four, which darkens the border.

    Args:
        images: float32 of shape `(batch, height, width, channels)` in [0, 1]; the batch may be
            unknown or empty.
        kept: float32, same shape: one where a value was kept, zero where it was dropped.
        weight: Weight of the total variation, above 0; 0.03 in the code of Guo et al.
        tolerance: Largest change of a value in the last iteration, of `MAX_ITERATIONS` at most. At
            0.001 values of CIFAR-10, half of them dropped, were 0.001 from the solution in the root
            mean square and 0.006 at worst, at weight 0.03.

    Returns:
        float32, same shape as `images`, in [0, 1] but for what the tolerance leaves.

    Raises:
        SfmError: If height, width or channels are unknown.
    """
    kept = _to_planes(kept)
    values = _to_planes(images) * kept
    channels = images.shape[-1]
    batch = tf.shape(images)[0]
    relax = _gauss_seidel(values, kept, weight)

    def body(
        active: tf.Tensor, solution: tf.Tensor, u: tf.Tensor, *b: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        b, inflow = _shrink(u, b, weight)
        updated = relax(u, inflow)
        changes = tf.reduce_max(tf.abs(updated - u), axis=[0, 1])
        changes = tf.reduce_max(tf.reshape(changes, [batch, channels]), axis=1)
        # Each image keeps what it was when it finished.
        solution = tf.where(tf.repeat(active, channels), updated, solution)
        return active & (changes > tolerance), solution, updated, *b

    u = _fill_dropped(values, kept)
    _, solution, *_ = tf.while_loop(
        lambda active, *_: tf.reduce_any(active),
        body,
        (tf.ones([batch], tf.bool), u, u, tf.zeros_like(u), tf.zeros_like(u)),
        maximum_iterations=MAX_ITERATIONS,
    )
    return _from_planes(solution, channels)


def _shrink(u: tf.Tensor, b: Pair, weight: float) -> tuple[Pair, tf.Tensor]:
    """Updates d, the gradient that u is to have, and the Bregman variables b.

    Returns:
        The new b, and the transposed gradient of d - b.
    """
    # How far the norm is rounded, PENALTY / L; zero would be the exact shrinkage.
    rounding = PENALTY * weight / 2.0
    down, right = (gradient + each for gradient, each in zip(_differences(u), b, strict=True))
    length = PENALTY * tf.sqrt(down * down + right * right)
    root = tf.sqrt(tf.square(1.0 - length) + 4.0 * rounding * length)
    removed = 2.0 / (1.0 + length + root)
    b = (removed * down, removed * right)
    return b, _transposed_differences(down - 2.0 * b[0], right - 2.0 * b[1])


def _gauss_seidel(
    values: tf.Tensor, kept: tf.Tensor, weight: float
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Makes the sweep that sets each pixel of u to what its neighbours and its kept value ask for.

    The normal equations of the quadratic part are divided by the penalty. One colour of the
    chequerboard comes first, then the other.

    Returns:
        A function of u and of the transposed gradient that it is to follow.
    """
    height, width = values.shape[:2]
    fidelity = 1.0 / (weight * PENALTY)
    diagonal = fidelity * kept + tf.add_n(_neighbors(tf.ones_like(values)))
    parities = np.add.outer(np.arange(height), np.arange(width))[:, :, np.newaxis] % 2
    scales = [tf.constant(parities == parity, tf.float32) / diagonal for parity in (0, 1)]
    anchors = [scale * (fidelity * values) for scale in scales]

    def sweep(u: tf.Tensor, inflow: tf.Tensor) -> tf.Tensor:
        colors = []
        for scale, anchor in zip(scales, anchors, strict=True):
            # All neighbours of a pixel have the other colour. A tensor that nothing else needs is
            # first in the sum, because TensorFlow begins with one that it can overwrite.
            u = scale * tf.add_n([*_neighbors(u), inflow]) + anchor
            colors.append(u)
        return colors[0] + colors[1]

    return sweep


def _fill_dropped(values: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    """Replaces dropped values by averages of the kept ones around them.

    Normalised convolution (Knutsson and Westin 1993) with diamonds of one, two, to eight steps from
    pixel to pixel, of which a value gets the smallest that holds anything kept. The weight of a
    kept value is the number of ways to it.

    Both arguments and the result are planes; the result is zero where nothing within eight steps
    was kept.
    """
    filled, known, sums, weights = values, kept, values, kept
    for _ in range(FILL_ROUNDS):
        sums, weights = (tf.add_n([planes, *_neighbors(planes)]) for planes in (sums, weights))
        filled = tf.where(known > 0.0, filled, tf.math.divide_no_nan(sums, weights))
        known = weights
    return filled


def _to_planes(images: tf.Tensor) -> tf.Tensor:
    """Lays images out as planes, in which a shifted image is one piece of memory or a few.

    Planes have the shape `(height, width, batch * channels)`, with the channels of an image
    together. Raises `SfmError` if height, width or channels are unknown.
    """
    height, width, channels = static_image_shape(images)
    planes = tf.transpose(images, [1, 2, 0, 3])
    return tf.reshape(planes, [height, width, tf.shape(images)[0] * channels])


def _from_planes(planes: tf.Tensor, channels: int) -> tf.Tensor:
    """Inverts `_to_planes`."""
    height, width = planes.shape[:2]
    batch = tf.shape(planes)[2] // channels
    return tf.transpose(tf.reshape(planes, [height, width, batch, channels]), [2, 0, 1, 3])


def _neighbors(planes: tf.Tensor) -> list[tf.Tensor]:
    """Returns for each pixel those above, below, left and right; zero where there is none."""
    row, column = tf.zeros_like(planes[:1]), tf.zeros_like(planes[:, :1])
    return [
        tf.concat([row, planes[:-1]], axis=0),
        tf.concat([planes[1:], row], axis=0),
        tf.concat([column, planes[:, :-1]], axis=1),
        tf.concat([planes[:, 1:], column], axis=1),
    ]


def _differences(planes: tf.Tensor) -> Pair:
    """Returns the forward differences downwards and to the right; zero at the last row, column."""
    downwards, rightwards = planes[1:] - planes[:-1], planes[:, 1:] - planes[:, :-1]
    return (
        tf.concat([downwards, tf.zeros_like(planes[:1])], axis=0),
        tf.concat([rightwards, tf.zeros_like(planes[:, :1])], axis=1),
    )


def _transposed_differences(downwards: tf.Tensor, rightwards: tf.Tensor) -> tf.Tensor:
    """Is the transpose of `_differences`, minus the divergence; takes zeros where that has them."""
    from_above = tf.concat([tf.zeros_like(downwards[:1]), downwards[:-1]], axis=0)
    from_left = tf.concat([tf.zeros_like(rightwards[:, :1]), rightwards[:, :-1]], axis=1)
    return (from_above - downwards) + (from_left - rightwards)
