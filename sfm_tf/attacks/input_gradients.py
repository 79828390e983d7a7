"""The gradient of what an attack optimises with respect to the images."""

import tensorflow as tf

from sfm_tf.errors import SfmError


def usable_gradient(gradient: tf.Tensor | None, mask: tf.Tensor) -> tf.Tensor:
    """Returns `gradient` with zeros where it is not finite or a pixel must not change.

    Args:
        gradient: What a gradient tape returned for the images, of the mask's shape.
        mask: Float32 of shape `(batch, height, width, channels)`; zero where a pixel must not
            change.

    Raises:
        SfmError: If there is no gradient: the output does not depend on the images differentiably.
    """
    if gradient is None:
        raise SfmError(
            "The model has no gradient with respect to its input; give each operation without "
            "one, such as rounding, a surrogate gradient."
        )
    is_usable = tf.math.is_finite(gradient) & (mask != 0.0)
    # A third of the time of `tf.where` on a CPU; zero times NaN or infinity is zero here.
    return tf.math.multiply_no_nan(gradient, tf.cast(is_usable, gradient.dtype))
