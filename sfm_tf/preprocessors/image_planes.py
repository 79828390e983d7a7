"""Images with rows and columns first, and the differences between neighbouring pixels of them."""

import tensorflow as tf

from sfm_tf.preprocessors.image_shape import static_image_shape

Pair = tuple[tf.Tensor, tf.Tensor]


def to_planes(images: tf.Tensor) -> tf.Tensor:
    """Lays the images of a batch out so that a shifted image is one piece of memory or a few.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`; the batch may be unknown.

    Returns:
        Same dtype, shape `(height, width, batch * channels)`, the channels of an image together.

    Raises:
        SfmError: If height, width or channels are unknown.
    """
    height, width, channels = static_image_shape(images)
    planes = tf.transpose(images, [1, 2, 0, 3])
    return tf.reshape(planes, [height, width, tf.shape(images)[0] * channels])


def from_planes(planes: tf.Tensor, channels: int) -> tf.Tensor:
    """Inverts `to_planes`.

    Args:
        planes: Tensor of shape `(height, width, batch * channels)`.
        channels: Number of channels of an image.

    Returns:
        Same dtype, shape `(batch, height, width, channels)`.
    """
    height, width = planes.shape[:2]
    batch = tf.shape(planes)[2] // channels
    return tf.transpose(tf.reshape(planes, [height, width, batch, channels]), [2, 0, 1, 3])


def neighbors(planes: tf.Tensor) -> list[tf.Tensor]:
    """Returns for each pixel the one above, the one below, the one to the left and to the right.

    Args:
        planes: float32 of shape `(height, width, count)`.

    Returns:
        Four tensors of the same shape, zero where there is no such pixel.
    """
    row, column = tf.zeros_like(planes[:1]), tf.zeros_like(planes[:, :1])
    return [
        tf.concat([row, planes[:-1]], axis=0),
        tf.concat([planes[1:], row], axis=0),
        tf.concat([column, planes[:, :-1]], axis=1),
        tf.concat([planes[:, 1:], column], axis=1),
    ]


def differences(planes: tf.Tensor) -> Pair:
    """Returns by how much the pixel below, and the one to the right, is larger than each pixel.

    Args:
        planes: float32 of shape `(height, width, count)`.

    Returns:
        Two tensors of the same shape; the first is zero in the last row, the second in the last
        column.
    """
    downwards, rightwards = planes[1:] - planes[:-1], planes[:, 1:] - planes[:, :-1]
    return (
        tf.concat([downwards, tf.zeros_like(planes[:1])], axis=0),
        tf.concat([rightwards, tf.zeros_like(planes[:, :1])], axis=1),
    )


def transposed_differences(downwards: tf.Tensor, rightwards: tf.Tensor) -> tf.Tensor:
    """Is the transpose of `differences`: what flows into each pixel less what flows out of it.

    Args:
        downwards: float32 of shape `(height, width, count)`, zero in the last row.
        rightwards: float32, same shape, zero in the last column.

    Returns:
        float32, same shape: minus the divergence.
    """
    from_above = tf.concat([tf.zeros_like(downwards[:1]), downwards[:-1]], axis=0)
    from_left = tf.concat([tf.zeros_like(rightwards[:, :1]), rightwards[:, :-1]], axis=1)
    return (from_above - downwards) + (from_left - rightwards)
