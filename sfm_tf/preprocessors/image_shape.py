"""The part of an image tensor's shape that windows need to know when a graph is built."""

import tensorflow as tf

from sfm_tf.errors import SfmError


def static_image_shape(images: tf.Tensor) -> tuple[int, int, int]:
    """Reads height, width and channels; the batch may stay unknown.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`.

    Returns:
        Height and width in pixels, and the number of channels.

    Raises:
        SfmError: If `images` is not such a tensor, or one of the three is unknown.
    """
    shape = tf.TensorShape(images.shape)
    if shape.rank != 4 or None in shape[1:].as_list():
        raise SfmError(
            f"Cannot pre-process images of shape {shape}; expected (batch, height, width, "
            "channels) with a fixed height, width and number of channels."
        )
    return tuple(shape[1:].as_list())
