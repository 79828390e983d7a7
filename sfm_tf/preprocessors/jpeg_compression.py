"""JPEG compression (Dziugaite et al. 2016; Guo et al. 2018, section 4), and a smooth stand-in."""

import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.operation import static_image_shape
from sfm_tf.settings import PIXEL_LEVELS

Table = tuple[tuple[int, ...], ...]

LEAST_SLOPE = 0.1

_BLOCK = 8
_MIDDLE = 128.0
_LUMINANCE_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


def compress_jpeg(images: tf.Tensor, quality: int) -> tf.Tensor:
    """Rounds images to 8 bits, encodes them as JPEG and decodes them again.

    Guo et al., "Countering adversarial images using input transformations", 2018, section 4, take
    quality 75. The other settings are those of `PIL.Image.save(file, "JPEG", quality=quality)`, so
    of ART's `JpegCompression`: the tables of the standard's annex K, chroma of half the height and
    width (4:2:0) that is interpolated when decoded, and the accurate integer transform.

    Args:
        images: float32 of shape `(batch, height, width, channels)` in [0, 1], one or three
            channels; the batch may be unknown or empty.
        quality: From 1 to 100: the higher, the less is lost.

    Returns:
        float32 in [0, 1], same shape as `images`.

    Raises:
        SfmError: If the images have neither one nor three channels.
    """
    shape = _known_shape(images)

    def compress(levels: tf.Tensor) -> tf.Tensor:
        encoded = tf.io.encode_jpeg(levels, quality=quality, chroma_downsampling=True)
        decoded = tf.io.decode_jpeg(encoded, channels=shape[-1], dct_method="INTEGER_ACCURATE")
        return tf.ensure_shape(decoded, shape)

    levels = tf.round(tf.clip_by_value(images, 0.0, 1.0) * PIXEL_LEVELS)
    decoded = tf.map_fn(
        compress, tf.cast(levels, tf.uint8), fn_output_signature=tf.TensorSpec(shape, tf.uint8)
    )
    return tf.cast(decoded, tf.float32) / PIXEL_LEVELS


def compress_jpeg_smoothly(images: tf.Tensor, quality: int) -> tf.Tensor:
    """Computes `compress_jpeg` in real numbers, with a rounding that has a gradient.

    Coefficients of the blocks' cosine transform are rounded as in Shin and Song, "JPEG-resistant
    adversarial images", 2017: `round(x) + (x - round(x))^3`. To that a tenth of the remainder is
    added, so that an attack has a gradient even where coefficients are whole, as on black. Pixels
    are neither rounded nor clipped.

    Args:
        images: float32 of shape `(batch, height, width, channels)` in [0, 1], one or three
            channels; the batch may be unknown or empty.
        quality: From 1 to 100.

    Returns:
        float32, same shape as `images`, in [0, 1] up to what the lost coefficients overshoot.

    Raises:
        SfmError: If the images have neither one nor three channels.
    """
    height, width, channels = _known_shape(images)
    # Chroma has half the height and width, and its blocks have to be whole, too.
    multiple = _BLOCK if channels == 1 else 2 * _BLOCK
    levels = _repeat_border(images * PIXEL_LEVELS, -height % multiple, -width % multiple)
    if channels == 1:
        levels = _compress_luminance(levels, quality)
    else:
        luminance, chroma = _split_colors(levels)
        luminance = _compress_luminance(luminance, quality)[:, :height, :width]
        chroma = tf.nn.avg_pool2d(chroma, 2, 2, "VALID")
        chroma = _compress_chroma(chroma, quality)[:, : (height + 1) // 2, : (width + 1) // 2]
        chroma = _double(_double(chroma, axis=1), axis=2)[:, :height, :width]
        levels = _join_colors(luminance, chroma)
    return levels[:, :height, :width] / PIXEL_LEVELS


def _known_shape(images: tf.Tensor) -> tuple[int, int, int]:
    shape = static_image_shape(images)
    if shape[-1] not in (1, 3):
        raise SfmError(f"Cannot compress images of {shape[-1]} channels; expected 1 or 3.")
    return shape


def _repeat_border(images: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Repeats the last row and column as often as said."""
    for axis, count in ((1, rows), (2, columns)):
        if count:
            last = tf.gather(images, [images.shape[axis] - 1] * count, axis=axis)
            images = tf.concat([images, last], axis=axis)
    return images


def _split_colors(levels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Converts RGB to luminance and both chroma channels, these around 0 (JFIF 1.02)."""
    red, green, blue = tf.split(levels, 3, axis=-1)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = [(blue - luminance) / 1.772, (red - luminance) / 1.402]
    return luminance, tf.concat(chroma, axis=-1)


def _join_colors(luminance: tf.Tensor, chroma: tf.Tensor) -> tf.Tensor:
    """Inverts `_split_colors`."""
    first, second = tf.split(chroma, 2, axis=-1)
    red = luminance + 1.402 * second
    blue = luminance + 1.772 * first
    green = (luminance - 0.299 * red - 0.114 * blue) / 0.587
    return tf.concat([red, green, blue], axis=-1)


def _double(values: tf.Tensor, axis: int) -> tf.Tensor:
    """Doubles an axis by the decoder's filter: three quarters of the nearer of two neighbours."""
    size = values.shape[axis]
    before = tf.gather(values, np.maximum(np.arange(size) - 1, 0), axis=axis)
    after = tf.gather(values, np.minimum(np.arange(size) + 1, size - 1), axis=axis)
    pairs = tf.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], axis=axis + 1)
    shape = list(values.shape)
    shape[axis] *= 2
    return tf.reshape(pairs, [-1, *shape[1:]])


def _compress_luminance(luminance: tf.Tensor, quality: int) -> tf.Tensor:
    return _quantise_blocks(luminance - _MIDDLE, _LUMINANCE_TABLE, quality) + _MIDDLE


def _compress_chroma(chroma: tf.Tensor, quality: int) -> tf.Tensor:
    planes = tf.split(chroma, 2, axis=-1)
    planes = [_quantise_blocks(plane, _CHROMINANCE_TABLE, quality) for plane in planes]
    return tf.concat(planes, axis=-1)


def _quantise_blocks(plane: tf.Tensor, table: Table, quality: int) -> tf.Tensor:
    """Rounds the cosine transform of each block of one channel around 0 to the table's steps."""
    steps = tf.constant(_scale_table(table, quality).reshape(-1), plane.dtype)
    transform = tf.constant(_block_transform(), plane.dtype)
    blocks = tf.nn.space_to_depth(plane, _BLOCK)
    coefficients = tf.tensordot(blocks, transform, [[3], [1]]) / steps
    blocks = tf.tensordot(_round_smoothly(coefficients) * steps, transform, [[3], [0]])
    return tf.nn.depth_to_space(blocks, _BLOCK)


def _round_smoothly(values: tf.Tensor) -> tf.Tensor:
    nearest = tf.stop_gradient(tf.round(values))
    remainder = values - nearest
    return nearest + remainder * (LEAST_SLOPE + remainder**2)


def _scale_table(table: Table, quality: int) -> np.ndarray:
    """Scales a table of quality 50 to another, as the Independent JPEG Group's code does."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.array(table) * percent + 50) // 100, 1, 255)


def _block_transform() -> np.ndarray:
    """The orthonormal two-dimensional cosine transform of a block, as a matrix of its pixels."""
    positions = np.arange(_BLOCK)
    cosines = np.cos(np.pi * np.outer(positions, 2 * positions + 1) / (2 * _BLOCK))
    cosines *= np.where(positions == 0, 1.0, np.sqrt(2.0))[:, np.newaxis] / np.sqrt(_BLOCK)
    return np.kron(cosines, cosines)
