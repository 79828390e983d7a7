"""CIELab colours of linear RGB: OpenCV's 8-bit integer arithmetic, and the real-valued formulas."""

import numpy as np
import tensorflow as tf

_RGB_TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_XYZ_TO_RGB = np.array(
    [
        [3.240479, -1.53715, -0.498535],
        [-0.969256, 1.875991, 0.041556],
        [0.055648, -0.204043, 1.057311],
    ]
)
_WHITE_D65 = np.array([0.950456, 1.0, 1.088754])
_LINEAR_BELOW = 216.0 / 24389.0
_LINEAR_SLOPE = 841.0 / 108.0
_LINEAR_OFFSET = 16.0 / 116.0
_LIGHTNESS_SCALE = 255.0 / 100.0
_CHROMA_OFFSET = 128.0

_COLOR_BITS = 3
_MATRIX_BITS = 12
_ROOT_BITS = 15
_CUBE_BITS = 14
_CUBE_UNIT = 1 << _CUBE_BITS
_LOWEST_ROOT = -8145


def encode_lab_8_bit(images: tf.Tensor) -> tf.Tensor:
    """Converts like `cv2.cvtColor(images, cv2.COLOR_LRGB2Lab)` on uint8, bit for bit.

    Args:
        images: float64 integers in [0, 255], of shape `(..., 3)`: linear red, green, blue.

    Returns:
        float64 integers in [0, 255], same shape: lightness and the two chroma channels, in OpenCV's
        8-bit scaling L * 255 / 100, a + 128, b + 128.
    """
    matrix = np.rint((_RGB_TO_XYZ / _WHITE_D65[:, np.newaxis]) * (1 << _MATRIX_BITS))
    ratios = _round_bits(_multiply(matrix, images * (1 << _COLOR_BITS)), _MATRIX_BITS)
    x, y, z = tf.unstack(_look_up(_root_table(), ratios), axis=-1)
    lightness_scale = (116 * 255 + 50) // 100
    lightness_offset = -((16 * 255 * (1 << _ROOT_BITS) + 50) // 100)
    chroma_offset = _CHROMA_OFFSET * (1 << _ROOT_BITS)
    scaled = [
        lightness_scale * y + lightness_offset,
        500.0 * (x - y) + chroma_offset,
        200.0 * (y - z) + chroma_offset,
    ]
    return tf.clip_by_value(_round_bits(tf.stack(scaled, axis=-1), _ROOT_BITS), 0.0, 255.0)


def decode_lab_8_bit(lab: tf.Tensor) -> tf.Tensor:
    """Converts like `cv2.cvtColor(lab, cv2.COLOR_Lab2LRGB)` on uint8, bit for bit.

    Args:
        lab: float64 integers in [0, 255], of shape `(..., 3)`, as `encode_lab_8_bit` returns.

    Returns:
        float64 integers in [0, 255], same shape: linear red, green, blue.
    """
    lightness, first_chroma, second_chroma = tf.unstack(lab, axis=-1)
    y_table, root_table = _lightness_tables()
    root = _look_up(root_table, lightness)
    first = tf.floor((5 * 53687 * first_chroma + (1 << 7)) / (1 << 13)) - 128 * _CUBE_UNIT // 500
    second = tf.floor((41943 * second_chroma + (1 << 4)) / (1 << 9)) - 128 * _CUBE_UNIT // 200 + 1
    cubes = _cube_table()
    x = _look_up(cubes, root + first - _LOWEST_ROOT)
    z = _look_up(cubes, root - second - _LOWEST_ROOT)
    xyz = tf.stack([x, _look_up(y_table, lightness), z], axis=-1)
    matrix = np.rint((_XYZ_TO_RGB * _WHITE_D65) * (1 << _MATRIX_BITS))
    levels = _round_bits(_multiply(matrix, xyz), _CUBE_BITS)
    top_level = (1 << _MATRIX_BITS) - 1.0
    return tf.floor(tf.clip_by_value(levels, 0.0, top_level) * 255.0 / (1 << _MATRIX_BITS))


def encode_lab(images: tf.Tensor) -> tf.Tensor:
    """Converts linear RGB to CIELab with the formulas of CIE 15, without rounding.

    Args:
        images: float of shape `(..., 3)` in [0, 255]: linear red, green, blue.

    Returns:
        Same dtype and shape, in the units of `encode_lab_8_bit`.
    """
    ratios = _multiply(_RGB_TO_XYZ / _WHITE_D65[:, np.newaxis] / 255.0, images)
    # The clip keeps the branch that is not taken from turning the gradient of the other into NaN.
    roots = tf.where(
        ratios > _LINEAR_BELOW,
        tf.maximum(ratios, _LINEAR_BELOW) ** (1.0 / 3.0),
        ratios * _LINEAR_SLOPE + _LINEAR_OFFSET,
    )
    x, y, z = tf.unstack(roots, axis=-1)
    lightness = (116.0 * y - 16.0) * _LIGHTNESS_SCALE
    chroma = [500.0 * (x - y) + _CHROMA_OFFSET, 200.0 * (y - z) + _CHROMA_OFFSET]
    return tf.stack([lightness, *chroma], axis=-1)


def decode_lab(lab: tf.Tensor) -> tf.Tensor:
    """Inverts `encode_lab`.

    Args:
        lab: float of shape `(..., 3)` in the units of `encode_lab_8_bit`.

    Returns:
        Same dtype and shape: linear red, green, blue in [0, 255], or outside it for colours that
        RGB cannot show.
    """
    lightness, first_chroma, second_chroma = tf.unstack(lab, axis=-1)
    y = (lightness / _LIGHTNESS_SCALE + 16.0) / 116.0
    x = y + (first_chroma - _CHROMA_OFFSET) / 500.0
    z = y - (second_chroma - _CHROMA_OFFSET) / 200.0
    roots = tf.stack([x, y, z], axis=-1)
    ratios = tf.where(
        roots > _LINEAR_BELOW ** (1.0 / 3.0),
        roots**3,
        (roots - _LINEAR_OFFSET) / _LINEAR_SLOPE,
    )
    return _multiply(_XYZ_TO_RGB * _WHITE_D65 * 255.0, ratios)


def _multiply(matrix: np.ndarray, colors: tf.Tensor) -> tf.Tensor:
    """Multiplies each colour by `matrix` without the reduced precision of GPU matrix products."""
    channels = tf.unstack(colors, axis=-1)
    rows = [
        tf.add_n([w * channel for w, channel in zip(row, channels, strict=True)]) for row in matrix
    ]
    return tf.stack(rows, axis=-1)


def _round_bits(values: tf.Tensor, bits: int) -> tf.Tensor:
    """Divides integers by 2^bits, halves up, as `CV_DESCALE` does with a shift."""
    return tf.floor((values + (1 << bits - 1)) / (1 << bits))


def _look_up(table: np.ndarray, indices: tf.Tensor) -> tf.Tensor:
    return tf.gather(tf.constant(table, tf.float64), tf.cast(indices, tf.int32))


def _root_table() -> np.ndarray:
    """Cube roots of CIELab for ratios to white in steps of 1/2040.

    float32, roots rounded towards zero: OpenCV fills its table so, by a software cube root that is
    the same on every processor, which NumPy's in float32 is not. It moves a few entries by one.
    """
    steps = 255 * (1 << _COLOR_BITS)
    ratios = np.arange(steps * 3 // 2 + 12, dtype=np.float32) * (
        np.float32(1.0) / np.float32(steps)
    )
    linear = ratios * np.float32(_LINEAR_SLOPE) + np.float32(_LINEAR_OFFSET)
    exact = np.cbrt(ratios.astype(np.float64))
    nearest = exact.astype(np.float32)
    cubic = np.where(nearest > exact, np.nextafter(nearest, np.float32(0.0)), nearest)
    roots = np.where(ratios < np.float32(_LINEAR_BELOW), linear, cubic)
    return np.rint(np.float32(1 << _ROOT_BITS) * roots)


def _lightness_tables() -> tuple[np.ndarray, np.ndarray]:
    """Luminance, and its cube root, for each 8-bit lightness; both in 1/2^14."""
    lightness = np.arange(256)
    roots = _CUBE_UNIT * (lightness * 100 / 255 + 16) / 116
    is_linear = lightness * 100 / 255 <= 8
    dark_luminance = _CUBE_UNIT * lightness * 100 / 255 * (3 / 29) ** 3
    dark_roots = _CUBE_UNIT * (_LINEAR_OFFSET + lightness * 5 / (3 * 17 * 29))
    luminance = np.where(is_linear, dark_luminance, roots**3 / _CUBE_UNIT**2)
    return np.rint(luminance), np.rint(np.where(is_linear, dark_roots, roots))


def _cube_table() -> np.ndarray:
    """Ratios to white for cube roots from `_LOWEST_ROOT` upwards; both in 1/2^14."""
    roots = np.arange(_LOWEST_ROOT, _LOWEST_ROOT + _CUBE_UNIT * 9 // 4)
    # OpenCV divides as C does, towards zero.
    dark = np.trunc(roots * 108 / 841) - _CUBE_UNIT * 16 // 116 * 108 // 841
    return np.where(roots <= 3390, dark, roots * roots // _CUBE_UNIT * roots // _CUBE_UNIT)
