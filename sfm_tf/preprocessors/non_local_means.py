"""Non-local means denoising (Buades et al. 2005; Xu et al. 2018; Yu et al. 2022, section 5.3)."""

import functools

import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.image_shape import static_image_shape
from sfm_tf.preprocessors.lab_colors import (
    decode_lab,
    decode_lab_8_bit,
    encode_lab,
    encode_lab_8_bit,
)
from sfm_tf.preprocessors.similarity_averages import average_similar_pixels

PIXEL_LEVELS = 255.0
WEIGHT_THRESHOLD = 0.001


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
    """Is `denoise_non_local_means` in real numbers: differentiable, without rounding or threshold.

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
