"""Non-local means denoising (Buades et al. 2005; Xu et al. 2018; Yu et al. 2022, section 5.3)."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.operation import static_image_shape
from sfm_tf.settings import PIXEL_LEVELS

WEIGHT_THRESHOLD = 0.001

# TensorFlow slices without copying only from multiples of 64 bytes, that is of 16 images. To fill
# up even a single image to as many costs less than the copies.
_ALIGNED_BATCH = 16

Planes = list[tf.Tensor]
Terms = list[tuple[tf.Tensor, ...]]
WeightFunction = Callable[[tf.Tensor], tf.Tensor]


def denoise_non_local_means(
    images: tf.Tensor, search_window: int, template_window: int, strength: int
) -> tf.Tensor:
    """Averages every pixel with those around it that have similar surroundings.

    Computes, on `rint(255 * images)`, what `cv2.fastNlMeansDenoisingColored(levels, h=strength,
    hColor=strength, templateWindowSize=template_window, searchWindowSize=search_window)` does, or
    `cv2.fastNlMeansDenoising` for one channel: lightness and chroma of CIELab are denoised
    separately, in 8 bits. Sums are float32 where OpenCV has 32-bit integers, so that about one
    value in 10,000 is rounded to the neighbouring level. OpenCV takes channel 0 for blue; as in the
    code of Xu et al. it gets red, and the result differs visibly from that of a swapped image.

    Memory grows with the search window's width only, not with its area.

    Args:
        images: float32 of shape `(batch, height, width, channels)` in [0, 1], one or three
            channels; height and width must be known, the batch need not be.
        search_window: Height and width in pixels of the area averaged over; odd.
        template_window: Height and width in pixels of the surroundings compared; odd.
        strength: Filter strength h, in 1/255: the larger, the more is averaged.

    Returns:
        float32 in [0, 1], same shape as `images`.

    Raises:
        SfmError: If the images have neither one nor three channels.
    """
    levels = tf.round(tf.clip_by_value(images, 0.0, 1.0) * PIXEL_LEVELS)

    def denoise(channels: tf.Tensor) -> tf.Tensor:
        weigh = functools.partial(
            _weigh_like_opencv, search_window, template_window, strength, channels.shape[-1]
        )
        averages = average_similar_pixels(channels, search_window, template_window, weigh)
        return tf.floor(averages + 0.5)

    if _channels(images) == 1:
        return denoise(levels) / PIXEL_LEVELS
    lab = tf.cast(encode_lab_8_bit(_swap(tf.cast(levels, tf.float64))), tf.float32)
    lab = tf.concat([denoise(lab[..., :1]), denoise(lab[..., 1:])], axis=-1)
    return tf.cast(_swap(decode_lab_8_bit(tf.cast(lab, tf.float64))), tf.float32) / PIXEL_LEVELS


def denoise_non_local_means_smoothly(
    images: tf.Tensor, search_window: int, template_window: int, strength: int
) -> tf.Tensor:
    """Computes `denoise_non_local_means` in real numbers: differentiable, not rounded or cut off.

    The weight of a pixel is `exp(-distance / strength^2)`, where the distance is the squared
    difference of the surroundings averaged over their pixels and channels. Gradients are
    recomputed shift by shift, so that they need no more memory than the values.

    Args:
        images: float32 of shape `(batch, height, width, channels)` in [0, 1].
        search_window: Height and width in pixels of the area averaged over; odd.
        template_window: Height and width in pixels of the surroundings compared; odd.
        strength: Filter strength h, in 1/255.

    Returns:
        float32, same shape as `images`, in [0, 1] up to colours that RGB cannot show.

    Raises:
        SfmError: If the images have neither one nor three channels.
    """

    def denoise(channels: tf.Tensor) -> tf.Tensor:
        scale = template_window**2 * channels.shape[-1] * float(strength) ** 2
        return average_similar_pixels(
            channels, search_window, template_window, lambda sums: tf.exp(sums / -scale)
        )

    levels = images * PIXEL_LEVELS
    if _channels(images) == 1:
        return denoise(levels) / PIXEL_LEVELS
    lab = encode_lab(_swap(levels))
    lab = tf.concat([denoise(lab[..., :1]), denoise(lab[..., 1:])], axis=-1)
    return _swap(decode_lab(lab)) / PIXEL_LEVELS


def _channels(images: tf.Tensor) -> int:
    _, _, channels = static_image_shape(images)
    if channels not in (1, 3):
        raise SfmError(f"Cannot denoise images of {channels} channels; expected 1 or 3.")
    return channels


def _swap(images: tf.Tensor) -> tf.Tensor:
    return tf.reverse(images, axis=[-1])


def _weigh_like_opencv(
    search_window: int, template_window: int, strength: int, channels: int, sums: tf.Tensor
) -> tf.Tensor:
    """Turns sums of squared differences into OpenCV's integer weights.

    OpenCV divides the sum by the next power of two above the template's area, drops the remainder,
    and looks up a weight that is scaled so that the sums of one pixel fit 31 bits.
    """
    area = template_window**2
    power_of_two = 1 << (area - 1).bit_length()
    unit = float((2**31 - 1) // (search_window**2 * 255))
    decay = power_of_two / area / (float(strength) ** 2 * channels)
    weights = tf.round(unit * tf.exp(sums // power_of_two * -decay))
    # A product, as it takes half the time of tf.where.
    return weights * tf.cast(weights >= WEIGHT_THRESHOLD * unit, weights.dtype)


def average_similar_pixels(
    channels: tf.Tensor, search_window: int, template_window: int, weigh: WeightFunction
) -> tf.Tensor:
    """Averages each pixel with those in its search window, weighted by their similarity.

    Borders mirror the image without repeating its edge, as often as a window needs. Each pair of
    opposite shifts of the image takes one step of a loop, so that memory grows with the windows'
    widths only. Gradients are recomputed step by step and need no more.

    Args:
        channels: float32 of shape `(batch, height, width, channels)`.
        search_window: Height and width in pixels of the area averaged over; odd.
        template_window: Height and width in pixels of the surroundings compared; odd.
        weigh: Maps a float32 tensor of squared differences, summed over the pixels and channels
            of the template, to the weights; elementwise.

    Returns:
        float32, same shape as `channels`.
    """
    height, width = channels.shape[1:3]
    grid = _Grid(height, width, search_window // 2, template_window // 2)
    batch = tf.shape(channels)[0]
    pixels = tf.transpose(tf.reshape(channels, [batch, height * width, channels.shape[-1]]))
    pixels = tf.pad(pixels, [[0, 0], [0, 0], [0, -batch % _ALIGNED_BATCH]])
    planes = tf.unstack(tf.gather(pixels, grid.padded_positions(), axis=1))
    center = [_window(plane, grid.start, grid.count) for plane in planes]
    own_weight = weigh(tf.zeros_like(center[0]))
    weights, *totals = _sum_over_shifts(grid, weigh)(*planes)
    averages = [
        (total + own_weight * value) / (weights + own_weight)
        for total, value in zip(totals, center, strict=True)
    ]
    rows = tf.pad(tf.stack(averages), [[0, 0], [0, grid.stride - width], [0, 0]])
    rows = tf.reshape(rows, [len(planes), height, grid.stride, -1])
    return tf.transpose(rows[:, :, :width], [3, 1, 2, 0])[:batch]


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Images padded for all windows, as rows of pixels laid end to end.

    In this layout, whose last axis is the batch, a shift of the image is a shift along one axis,
    the first, which TensorFlow slices without copying. Positions in the padding between two rows
    are computed and dropped.
    """

    height: int
    width: int
    search_half: int
    template_half: int

    @property
    def border(self) -> int:
        return self.search_half + self.template_half

    @property
    def stride(self) -> int:
        return self.width + 2 * self.border

    @property
    def start(self) -> int:
        return self.border * (self.stride + 1)

    @property
    def count(self) -> int:
        return (self.height - 1) * self.stride + self.width

    @property
    def largest_offset(self) -> int:
        return self.search_half * (self.stride + 1)

    def offsets(self) -> list[int]:
        """One of each two opposite shifts of the search window, without the zero shift."""
        half = self.search_half
        rows = [row * self.stride for row in range(half + 1)]
        return [r + c for r in rows for c in range(-half, half + 1) if r + c > 0]

    def padded_positions(self) -> np.ndarray:
        """For each padded position the pixel it mirrors; borders are not repeated."""
        rows = np.pad(np.arange(self.height), self.border, mode="reflect")
        columns = np.pad(np.arange(self.width), self.border, mode="reflect")
        return (rows[:, np.newaxis] * self.width + columns).reshape(-1)

    def sum_templates(self, planes: Planes) -> tf.Tensor:
        """Sums over planes and over the template around each position that has all of it."""
        for step in (1, self.stride):
            reach = 2 * self.template_half * step
            remaining = planes[0].shape[0] - reach
            starts = range(0, reach + 1, step)
            planes = [tf.add_n([_window(plane, i, remaining) for plane in planes for i in starts])]
        return planes[0]


def _window(values: tf.Tensor, start: tf.Tensor | int, count: int) -> tf.Tensor:
    return tf.slice(values, [start, 0], [count, -1])


def _weigh_pair(grid: _Grid, weigh: WeightFunction, offset: tf.Tensor, planes: Planes) -> Terms:
    """Weights of the pixels `offset` before and after each pixel, and their weighted values."""
    farthest = grid.largest_offset
    length = grid.count + farthest + 2 * grid.template_half * (grid.stride + 1)
    differences = [
        tf.math.squared_difference(_window(plane, 0, length), _window(plane, offset, length))
        for plane in planes
    ]
    weights = weigh(grid.sum_templates(differences))
    # The pixel after p sees p as the pixel before it, at the same distance.
    after = _window(weights, farthest, grid.count)
    before = _window(weights, farthest - offset, grid.count)
    values = [
        (
            after * _window(plane, grid.start + offset, grid.count),
            before * _window(plane, grid.start - offset, grid.count),
        )
        for plane in planes
    ]
    return [(after, before), *values]


def _sum_over_shifts(grid: _Grid, weigh: WeightFunction) -> Callable[..., Planes]:
    """Makes a function of padded planes: the sums of `_weigh_pair` over all offsets."""
    count = len(grid.offsets())
    offsets = tf.constant(grid.offsets())

    def accumulate(list_terms: Callable[[tf.Tensor], Terms], totals: Planes) -> Planes:
        def body(index: tf.Tensor, *totals: tf.Tensor) -> tuple[tf.Tensor, ...]:
            terms = list_terms(offsets[index])
            # One sum of all terms reads and writes the total only once.
            return index + 1, *map(tf.add_n, ([a, *b] for a, b in zip(totals, terms, strict=True)))

        _, *totals = tf.while_loop(
            lambda index, *_: index < count, body, (0, *totals), parallel_iterations=1
        )
        return totals

    @tf.custom_gradient
    def total(*planes: tf.Tensor) -> tuple[Planes, Callable[..., Planes]]:
        def gradient(*upstream: tf.Tensor) -> Planes:
            def list_gradients(offset: tf.Tensor) -> Terms:
                with tf.GradientTape() as tape:
                    tape.watch(planes)
                    terms = _weigh_pair(grid, weigh, offset, list(planes))
                both = [(each, each) for each in upstream]
                return [(each,) for each in tape.gradient(terms, planes, output_gradients=both)]

            return accumulate(list_gradients, [tf.zeros_like(plane) for plane in planes])

        zero = tf.zeros_like(_window(planes[0], 0, grid.count))
        sums = accumulate(
            lambda offset: _weigh_pair(grid, weigh, offset, list(planes)),
            [zero] * (len(planes) + 1),
        )
        return sums, gradient

    return total


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
