"""Total variation minimisation (Guo et al. 2018, section 4.2), and a smooth stand-in."""

import tensorflow as tf

from sfm_tf.preprocessors.image_planes import differences, from_planes, neighbors, to_planes
from sfm_tf.preprocessors.image_shape import static_image_shape
from sfm_tf.preprocessors.split_bregman import fill_dropped, solve_total_variation

SMOOTH_ROUNDS = 8
SMOOTH_LENGTH = 0.03


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
    kept = to_planes(_draw_kept(images, seeds, drop_percent))
    values = to_planes(images) * kept
    planes = fill_dropped(values, kept)
    for _ in range(SMOOTH_ROUNDS):
        planes = _diffuse(planes, values, kept, weight_thousandths / 1000.0)
    return from_planes(planes, images.shape[-1])


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


def _diffuse(planes: tf.Tensor, values: tf.Tensor, kept: tf.Tensor, weight: float) -> tf.Tensor:
    down, right = differences(planes)
    conductivity = weight / tf.sqrt(down * down + right * right + SMOOTH_LENGTH**2)
    # A pixel's conductivity is that of its edges to the pixels below and to the right.
    above, _, left, _ = neighbors(conductivity)
    below = tf.concat([conductivity[:-1], tf.zeros_like(conductivity[:1])], axis=0)
    beside = tf.concat([conductivity[:, :-1], tf.zeros_like(conductivity[:, :1])], axis=1)
    edges = [above, below, left, beside]
    flow = [edge * neighbor for edge, neighbor in zip(edges, neighbors(planes), strict=True)]
    return (values + tf.add_n(flow)) / (kept + tf.add_n(edges))
