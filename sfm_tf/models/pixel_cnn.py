"""A small PixelCNN++ (Salimans et al. 2017, "PixelCNN++", arXiv:1701.05517).

Kept of the paper: the mixture of discretised logistics, with whole pixels as the unit of
conditioning; two streams, one that sees the rows above and one that also sees what is left in the
same row, both by shifted convolutions of 2x3 and 2x2 pixels without a blind spot; gated residual
blocks with concatenated ELUs, where the first stream feeds the second; the channel of ones that
tells the border from grey. Left out, for size: halved resolutions and the skips between them,
dropout, weight normalisation with its initialisation from data, and the average of the weights.
"""

import random

import keras

from sfm_tf.models.discretised_logistics import count_parameters

_RESIDUAL_VARIANCE = 0.01
"""Blocks start near the identity; Salimans et al. start their last convolutions at 0.1."""

_Features = keras.KerasTensor
_Padding = tuple[tuple[int, int], tuple[int, int]]

_ABOVE: _Padding = ((1, 0), (1, 1))
_ABOVE_AND_LEFT: _Padding = ((1, 0), (1, 0))


def _convolution(
    features: _Features,
    filters: int,
    size: tuple[int, int],
    padding: _Padding,
    seeds: random.Random,
    name: str,
    variance: float = 1.0,
) -> _Features:
    """Applies a convolution that sees as much beyond the borders as it is padded, zeros there."""
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


def _gated_block(
    inputs: _Features,
    size: tuple[int, int],
    padding: _Padding,
    seeds: random.Random,
    name: str,
    other_stream: _Features | None = None,
) -> _Features:
    """Adds to the inputs two convolutions of them and, between the two, of the other stream."""
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


def _first_streams(
    inputs: _Features, width: int, seeds: random.Random
) -> tuple[_Features, _Features]:
    """Looks at strictly earlier pixels; from here on layers may look at their own position."""
    crop_row = keras.layers.Cropping2D(((0, 1), (0, 0)), name="row_cropping")
    crop_column = keras.layers.Cropping2D(((0, 0), (0, 1)), name="column_cropping")
    down = _convolution(inputs, width, (2, 3), ((2, 0), (1, 1)), seeds, "down_input")
    above = _convolution(inputs, width, (1, 3), _ABOVE, seeds, "right_input_above")
    left = _convolution(inputs, width, (2, 1), _ABOVE_AND_LEFT, seeds, "right_input_left")
    return crop_row(down), crop_row(above) + crop_column(left)


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
