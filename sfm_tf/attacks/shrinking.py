"""Images shrunk and padded back to their size, each by sizes and offsets of its own."""

import tensorflow as tf


def shrink_and_pad(images: tf.Tensor, sizes: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    """Shrinks each image by nearest neighbours and sets it in zeros of its former shape.

    Pixel centres are at half-integers, as in `tf.image.resize`: pixel i of `size` shows pixel
    floor((i + 1/2) * full / size) of the full one, the later of two that are equally near. The
    sizes are tensors and may differ from image to image; the shapes do not depend on them, so
    nothing compiles anew. The gradient reaches exactly the pixels that are shown.

    Args:
        images: Float32 of shape `(batch, height, width, channels)`.
        sizes: Int32 `(batch, 2)`: height and width to shrink to, 1 to the full size.
        offsets: Int32 `(batch, 2)`: rows above and columns to the left, 0 to full size - size.

    Returns:
        Float32 of the images' shape.
    """
    rows, in_rows = _source_indices(images.shape[1], sizes[:, 0], offsets[:, 0])
    columns, in_columns = _source_indices(images.shape[2], sizes[:, 1], offsets[:, 1])
    picked = tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    return tf.where(inside[..., None], picked, 0.0)


def _source_indices(
    full_size: int, sizes: tf.Tensor, offsets: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns which pixel each pixel shows along one axis, and whether it shows one at all."""
    positions = tf.range(full_size)[None] - offsets[:, None]
    inside = (positions >= 0) & (positions < sizes[:, None])
    # In integers, because the exact position is often an integer itself and floats may miss it.
    source = (2 * positions + 1) * full_size // (2 * sizes[:, None])
    return tf.where(inside, source, 0), inside


def random_placements(
    full_size: tuple[int, int], smallest_share: tf.Tensor, uniforms: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a random size and place for each row of `uniforms`.

    The size is uniform from round(smallest_share * full size) to the full size - 1; with a share
    of 299/330 that is 7 of 8 pixels, 29 to 31 of 32 and 58 to 63 of 64. Every place where it fits
    is equally likely.

    Args:
        full_size: Height and width of the images.
        smallest_share: Float32 scalar in (0, 1).
        uniforms: Float32 in [0, 1), shape `(batch, 3)`: for the size, which is one draw for both
            axes, the rows above and the columns to the left.

    Returns:
        Int32 sizes and offsets of shape `(batch, 2)`, for `shrink_and_pad`.
    """
    full = tf.constant(full_size, tf.int32)
    rounded = tf.cast(tf.round(smallest_share * tf.cast(full, tf.float32)), tf.int32)
    # An image of a single pixel stays as it is.
    smallest = tf.clip_by_value(rounded, 1, tf.maximum(full - 1, 1))
    sizes = smallest + _random_integers(uniforms[:, :1], full - smallest)
    return sizes, _random_integers(uniforms[:, 1:], full - sizes + 1)


def _random_integers(uniforms: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.floor(uniforms * tf.cast(counts, tf.float32)), tf.int32)
