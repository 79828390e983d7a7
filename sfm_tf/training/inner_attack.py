"""The inner maximisation of adversarial training: projected gradient ascent inside the graph.

Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", section 2.1.
"""

from collections.abc import Callable

import tensorflow as tf

Measure = Callable[[tf.Tensor], tf.Tensor]
"""From images `(batch, height, width, channels)` to the loss of each, `(batch,)`."""


def adversarial_images(
    images: tf.Tensor,
    measure: Measure,
    epsilon: float,
    step_size: float,
    iterations: int,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Returns images near the given ones on which `measure` is large.

    They start at a random point of the ball around each image in the L-infinity norm and take
    `iterations` steps along the sign of the gradient. The last point is returned, not the worst on
    the way: looking for that would take a further forward pass.

    Args:
        images: Float32 in [0, 1], shape `(batch, height, width, channels)`.
        measure: What is to be maximised, differentiable by TensorFlow.
        epsilon: Radius of the ball, in units of brightness.
        step_size: Length of a step in each value, in the same units.
        iterations: Number of steps; 0 for the random start alone.
        seed: Integers of shape `(2,)`; the same seed gives the same start.

    Returns:
        Float32 in [0, 1], of the images' shape, without a gradient.
    """
    lower, upper = tf.maximum(images - epsilon, 0.0), tf.minimum(images + epsilon, 1.0)

    def clip(values: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(values, lower, upper)

    def step(attacked: tf.Tensor) -> tuple[tf.Tensor]:
        return (clip(attacked + step_size * tf.sign(_gradient(measure, attacked))),)

    noise = tf.random.stateless_uniform(tf.shape(images), seed, -epsilon, epsilon)
    (attacked,) = tf.while_loop(
        lambda attacked: True, step, (clip(images + noise),), maximum_iterations=iterations
    )
    return tf.stop_gradient(tf.ensure_shape(attacked, images.shape))


def _gradient(measure: Measure, images: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of each image's loss; those of variables are not asked for."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        # One image's loss does not depend on another's, so the sum has the gradients of all.
        loss = tf.reduce_sum(measure(images))
    return tape.gradient(loss, images)
