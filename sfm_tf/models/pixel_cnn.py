"""A small PixelCNN++ (Salimans et al. 2017, "PixelCNN++", arXiv:1701.05517).

Kept of the paper: the mixture of discretised logistics, with whole pixels as the unit of
conditioning; two streams, one that sees the rows above and one that also sees what is left in the
same row, both by shifted convolutions of 2x3 and 2x2 pixels without a blind spot; gated residual
blocks with concatenated ELUs, where the first stream feeds the second; the channel of ones that
tells the border from grey. Left out, for size: halved resolutions and the skips between them,
dropout, weight normalisation with its initialisation from data, and the average of the weights.
"""

import dataclasses
import math
import random

import keras
import tensorflow as tf

from sfm_tf.errors import SfmError

LEVELS = 256
_HIGHEST = LEVELS - 1.0
_MIN_LOG_SCALE = -7.0

_RESIDUAL_VARIANCE = 0.01
"""Blocks start near the identity; Salimans et al. start their last convolutions at 0.1."""

_Features = keras.KerasTensor
_Padding = tuple[tuple[int, int], tuple[int, int]]
_ABOVE: _Padding = ((1, 0), (1, 1))
_ABOVE_AND_LEFT: _Padding = ((1, 0), (1, 0))


def build_pixel_cnn(
    input_shape: tuple[int, int, int],
    width: int = 32,
    depth: int = 4,
    mixtures: int = 5,
    seed: int | None = None,
) -> keras.Model:
    """Builds the network, causal in raster order, under Keras' current dtype policy.

    Args:
        input_shape: Height and width in pixels, and channels, 1 or 3.
        width: Channels of each stream.
        depth: Gated residual blocks of each stream.
        mixtures: Logistics in the mixture of a pixel; 10 in the publication.
        seed: Seed of the initial weights; None for different ones each time.

    Returns:
        A model from images in [0, 1], `(batch, height, width, channels)`, to float32 parameters of
        the distribution of each pixel given those above it and those left of it in its row,
        `(batch, height, width, parameters)`, to be read by `split_parameters`.
    """
    seeds = random.Random(seed)
    images = keras.Input(input_shape, name="images")
    centered = keras.layers.Rescaling(2.0, offset=-1.0, name="centering")(images)
    ones = [(0, 0), (0, 0), (0, 0), (0, 1)]
    down, right = _first_streams(keras.ops.pad(centered, ones, constant_values=1.0), width, seeds)
    for block in range(1, depth + 1):
        down = _gated_block(down, (2, 3), _ABOVE, seeds, f"down{block}")
        right = _gated_block(right, (2, 2), _ABOVE_AND_LEFT, seeds, f"right{block}", down)
    parameters = keras.layers.Conv2D(
        count_parameters(input_shape[-1], mixtures),
        1,
        kernel_initializer=keras.initializers.VarianceScaling(seed=seeds.randrange(2**31)),
        dtype="float32",
        name="parameters",
    )(keras.ops.elu(right))
    return keras.Model(images, parameters, name="pixel_cnn")


def _first_streams(
    inputs: _Features, width: int, seeds: random.Random
) -> tuple[_Features, _Features]:
    """Looks at strictly earlier pixels; the layers that follow may look at their own position."""
    crop_row = keras.layers.Cropping2D(((0, 1), (0, 0)), name="row_cropping")
    crop_column = keras.layers.Cropping2D(((0, 0), (0, 1)), name="column_cropping")
    down = _convolution(inputs, width, (2, 3), ((2, 0), (1, 1)), seeds, "down_input")
    above = _convolution(inputs, width, (1, 3), _ABOVE, seeds, "right_input_above")
    left = _convolution(inputs, width, (2, 1), _ABOVE_AND_LEFT, seeds, "right_input_left")
    return crop_row(down), crop_row(above) + crop_column(left)


def _gated_block(
    inputs: _Features,
    size: tuple[int, int],
    padding: _Padding,
    seeds: random.Random,
    name: str,
    other_stream: _Features | None = None,
) -> _Features:
    """Adds to the inputs two convolutions of them; the other stream joins between the two."""
    width = inputs.shape[-1]
    features = _concatenated_elu(inputs)
    features = _convolution(features, width, size, padding, seeds, f"{name}_first")
    if other_stream is not None:
        other_stream = _concatenated_elu(other_stream)
        features = features + _pointwise(other_stream, width, seeds, f"{name}_across")
    features = _concatenated_elu(features)
    features = _convolution(
        features, 2 * width, size, padding, seeds, f"{name}_second", _RESIDUAL_VARIANCE
    )
    return inputs + keras.ops.glu(features)


def _convolution(
    features: _Features,
    filters: int,
    size: tuple[int, int],
    padding: _Padding,
    seeds: random.Random,
    name: str,
    variance: float = 1.0,
) -> _Features:
    """Applies a convolution after padding with zeros."""
    if padding != ((0, 0), (0, 0)):
        features = keras.layers.ZeroPadding2D(padding, name=f"{name}_padding")(features)
    initializer = keras.initializers.VarianceScaling(variance, seed=seeds.randrange(2**31))
    return keras.layers.Conv2D(filters, size, kernel_initializer=initializer, name=name)(features)


def _pointwise(
    features: _Features, filters: int, seeds: random.Random, name: str, variance: float = 1.0
) -> _Features:
    return _convolution(features, filters, (1, 1), ((0, 0), (0, 0)), seeds, name, variance)


def _concatenated_elu(features: _Features) -> _Features:
    return keras.ops.concatenate([keras.ops.elu(features), keras.ops.elu(-features)], axis=-1)


def bits_per_dimension(images: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
    """Returns the bits that an image takes per pixel and channel: the loss of the training.

    Args:
        images: float32 in [0, 1], `(batch, height, width, channels)`, rounded to 8 bits here.
        parameters: The network's outputs for them, `(batch, height, width, parameters)`.

    Returns:
        Negative log-likelihood to base 2 per dimension, `(batch,)`.
    """
    levels = tf.round(tf.cast(images, parameters.dtype) * _HIGHEST)
    mixture = split_parameters(parameters, images.shape[-1])
    nats = tf.reduce_mean(pixel_log_probabilities(mixture, levels), axis=[1, 2])
    return nats / (-math.log(2.0) * images.shape[-1])


def expected_images(images: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
    """Returns the mean of each channel given the earlier ones and, by the network, earlier pixels.

    Args:
        images: Float in [0, 1], `(batch, height, width, channels)`; need not be rounded.
        parameters: The network's outputs for them, `(batch, height, width, parameters)`.

    Returns:
        Same shape as `images`, differentiable; means of logistics, not cut off at [0, 1].
    """
    channels = images.shape[-1]
    mixture, levels = split_parameters(parameters, channels), images * _HIGHEST
    expected = []
    for channel in range(channels):
        weights = tf.nn.softmax(_weigh_components(mixture, levels[..., :channel]))
        means = _conditional_means(mixture, channel, levels)
        expected.append(tf.reduce_sum(weights * means, axis=-1))
    return (tf.stack(expected, axis=-1) + 1.0) / 2.0


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """The parameters of pixels, float tensors that share their leading dimensions.

    Attributes:
        log_weights: Logarithms of the components' weights, `(..., components)`; they sum to 1.
        means: `(..., channels, components)` on the scale of [-1, 1].
        log_scales: `(..., channels, components)`, at least -7.
        coefficients: In (-1, 1), `(..., pairs, components)`: of red for green, red for blue and
            green for blue; no pairs where there is one channel.
    """

    log_weights: tf.Tensor
    means: tf.Tensor
    log_scales: tf.Tensor
    coefficients: tf.Tensor


def count_parameters(channels: int, mixtures: int) -> int:
    """Returns how many numbers describe one pixel: 3 per component for grey, 10 for RGB."""
    return mixtures * (1 + 2 * channels + math.comb(channels, 2))


def split_parameters(parameters: tf.Tensor, channels: int) -> LogisticMixture:
    """Reads a network's outputs as the parameters of pixels.

    Args:
        parameters: Float of shape `(..., parameters)`, as many as `count_parameters` says.
        channels: Channels of the image.

    Raises:
        SfmError: If so many numbers do not describe a pixel of so many channels.
    """
    kinds = [1, channels, channels, math.comb(channels, 2)]
    count = parameters.shape[-1]
    if count % sum(kinds):
        raise SfmError(
            f"Invalid count {count} of parameters for a pixel of {channels} channels; expected a "
            f"multiple of {sum(kinds)}."
        )
    leading = tf.shape(parameters)[:-1]
    shape = tf.concat([leading, [sum(kinds), count // sum(kinds)]], axis=0)
    logits, means, log_scales, coefficients = tf.split(tf.reshape(parameters, shape), kinds, -2)
    return LogisticMixture(
        log_weights=tf.nn.log_softmax(tf.squeeze(logits, -2)),
        means=means,
        log_scales=tf.maximum(log_scales, _MIN_LOG_SCALE),
        coefficients=tf.tanh(coefficients),
    )


def pixel_log_probabilities(mixture: LogisticMixture, levels: tf.Tensor) -> tf.Tensor:
    """Returns the joint log-probability of all channels of each pixel.

    Args:
        mixture: Of the pixels.
        levels: `(..., channels)`, float in [0, 255].

    Returns:
        Natural logarithms, `(...)`.
    """
    return tf.reduce_logsumexp(_weigh_components(mixture, levels), axis=-1)


def component_log_probabilities(
    mixture: LogisticMixture, channel: int, earlier_levels: tf.Tensor, levels: tf.Tensor
) -> tf.Tensor:
    """Returns the log-probabilities of levels of one channel under each component.

    Args:
        mixture: Of the pixels.
        channel: Index of the channel.
        earlier_levels: Levels of the channels before it, `(..., channel)`, float in [0, 255].
        levels: Levels to judge, `(..., levels)`, float in [0, 255].

    Returns:
        Logarithms of probabilities, `(..., levels, components)`.
    """
    means = _conditional_means(mixture, channel, earlier_levels)[..., tf.newaxis, :]
    log_scales = mixture.log_scales[..., channel, tf.newaxis, :]
    return _log_masses(levels[..., tf.newaxis], means, log_scales)


def _weigh_components(mixture: LogisticMixture, levels: tf.Tensor) -> tf.Tensor:
    """Returns the joint log-probability of each component and the levels of the first channels.

    That a component explains the earlier channels well raises its weight for the later ones.
    """
    weights = mixture.log_weights
    for channel in range(levels.shape[-1]):
        level = levels[..., channel : channel + 1]
        masses = component_log_probabilities(mixture, channel, levels, level)
        weights += tf.squeeze(masses, -2)
    return weights


def _conditional_means(mixture: LogisticMixture, channel: int, levels: tf.Tensor) -> tf.Tensor:
    """Means of a channel given the levels of those before it, `(..., components)`."""
    means = mixture.means[..., channel, :]
    first_pair = math.comb(channel, 2)
    for earlier in range(channel):
        coefficients = mixture.coefficients[..., first_pair + earlier, :]
        means += coefficients * center_levels(levels[..., earlier, tf.newaxis])
    return means


def _log_masses(levels: tf.Tensor, means: tf.Tensor, log_scales: tf.Tensor) -> tf.Tensor:
    """Logarithm of the mass of levels, exact far out in the tails as well.

    For a > b, sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)). The published code
    takes the difference itself, and the density where that is below 1e-5.
    """
    inverse_scales = tf.exp(-log_scales)
    middles = (center_levels(levels) - means) * inverse_scales
    halves = inverse_scales / _HIGHEST
    is_bounded_above, is_bounded_below = levels < _HIGHEST, levels > 0.0
    zero = tf.zeros([], levels.dtype)
    below_upper = tf.where(is_bounded_above, -tf.math.softplus(-halves - middles), zero)
    above_lower = tf.where(is_bounded_below, -tf.math.softplus(middles - halves), zero)
    widths = tf.math.log(-tf.math.expm1(-2.0 * halves))
    return below_upper + above_lower + tf.where(is_bounded_above & is_bounded_below, widths, zero)


def center_levels(levels: tf.Tensor) -> tf.Tensor:
    """Maps float levels in [0, 255] to [-1, 1], the scale of the means."""
    return levels * (2.0 / _HIGHEST) - 1.0
