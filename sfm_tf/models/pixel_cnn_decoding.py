"""Greedy decoding of images by a PixelCNN, pixel after pixel, each activation computed once.

The stream of rows above is computed a row at a time, when the rows before are decoded. So is what
the other stream takes from the row above. What is left for each pixel are products with its own
activations: of one column of each layer. Each serves the pixel itself and its right neighbour.

All is in float64. Where two levels are about equally probable, float32 would choose between them by
the order of its sums, which differs with the size of the batch and with the processor.
"""

import dataclasses
import hashlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.pixel_cnn import (
    LEVELS,
    center_levels,
    component_log_probabilities,
    split_parameters,
)


@dataclasses.dataclass(frozen=True)
class ConvolutionWeights:
    """One convolution: float32 kernel `(rows, columns, inputs, outputs)` and bias `(outputs,)`."""

    kernel: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class BlockWeights:
    """One gated residual block; `across` is from the other stream, None where there is none."""

    first: ConvolutionWeights
    second: ConvolutionWeights
    across: ConvolutionWeights | None = None


@dataclasses.dataclass(frozen=True)
class PixelCnnWeights:
    """What a model of `build_pixel_cnn` computes, all of it.

    Attributes:
        image_shape: Height and width in pixels, and channels.
        down_input: Of the two rows above.
        right_input_above: Of the row above.
        right_input_left: Of what is left of a pixel and above that.
        down_blocks: Of the stream that sees rows above.
        right_blocks: Of the stream that also sees what is left in the same row.
        parameters: Of the parameters of the pixels' distributions.
    """

    image_shape: tuple[int, int, int]
    down_input: ConvolutionWeights
    right_input_above: ConvolutionWeights
    right_input_left: ConvolutionWeights
    down_blocks: tuple[BlockWeights, ...]
    right_blocks: tuple[BlockWeights, ...]
    parameters: ConvolutionWeights

    def digest(self) -> str:
        """Returns a SHA-256, in hexadecimal, equal where two networks compute the same.

        Shapes and order say the architecture: depth, width, and number of logistics.
        """
        digest = hashlib.sha256(repr(self.image_shape).encode())
        blocks = [*self.down_blocks, *self.right_blocks]
        convolutions = [self.down_input, self.right_input_above, self.right_input_left]
        for block in blocks:
            convolutions += [block.first, block.second, *([block.across] if block.across else [])]
        for convolution in [*convolutions, self.parameters]:
            for values in (convolution.kernel, convolution.bias):
                digest.update(f"{values.dtype}{values.shape}".encode())
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def read_weights(pixel_cnn: keras.Model) -> PixelCnnWeights:
    """Copies the weights of a model; later training of it does not change the copy.

    Args:
        pixel_cnn: Made by `build_pixel_cnn`, or loaded from such a model's file.

    Raises:
        SfmError: If it is another kind of model.
    """
    layers = {layer.name: layer for layer in pixel_cnn.layers}

    def read(name: str) -> ConvolutionWeights:
        # A graph under construction has no values: they are read outside of it.
        with tf.init_scope():
            kernel, bias = layers[name].kernel.numpy(), layers[name].bias.numpy()
        return ConvolutionWeights(kernel, bias)

    def read_blocks(stream: str, convolutions: tuple[str, ...]) -> tuple[BlockWeights, ...]:
        depth = sum(f"{stream}{number}_first" in layers for number in range(1, len(layers)))
        return tuple(
            BlockWeights(**{each: read(f"{stream}{number}_{each}") for each in convolutions})
            for number in range(1, depth + 1)
        )

    try:
        return PixelCnnWeights(
            image_shape=tuple(pixel_cnn.input_shape[1:]),
            down_input=read("down_input"),
            right_input_above=read("right_input_above"),
            right_input_left=read("right_input_left"),
            down_blocks=read_blocks("down", ("first", "second")),
            right_blocks=read_blocks("right", ("first", "second", "across")),
            parameters=read("parameters"),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise SfmError(
            f"Model {pixel_cnn.name!r} is no PixelCNN; expected one that build_pixel_cnn made."
        ) from error


Decoder = Callable[[tf.Tensor, "tf.Tensor | int"], tf.Tensor]

_DTYPE = tf.float64
_Activations = list[tf.Tensor]
"""Inputs of both convolutions of each block of a stream, in order."""


def compile_decoder(weights: PixelCnnWeights) -> Decoder:
    """Makes the function that replaces each value of images by the most probable one near it.

    In raster order, channel after channel, given all that was replaced so far, it takes `argmax
    P(v)` over v in [level - epsilon, level + epsilon] and [0, 255], the lowest of equals (Song et
    al. 2018, "PixelDefend", Algorithm 1).

    Args:
        weights: Of the PixelCNN; they become constants of the graph.

    Returns:
        A `tf.function` of levels, int32 in [0, 255] of shape `(batch, height, width, channels)`
        with any batch, and of epsilon, int32 in [0, 255], to levels of the same shape.
    """
    shape = [None, *weights.image_shape]
    signature = [tf.TensorSpec(shape, tf.int32), tf.TensorSpec([], tf.int32)]

    @tf.function(input_signature=signature)
    def decode(levels: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
        return _decode_rows(weights, levels, epsilon)

    return decode


def _decode_rows(weights: PixelCnnWeights, levels: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    height, width, channels = weights.image_shape
    observed = tf.cast(tf.transpose(levels, [1, 2, 0, 3]), _DTYPE)

    def decode_row(
        row: tf.Tensor,
        rows_above: tf.Tensor,
        down: _Activations,
        right: _Activations,
        decoded: tf.TensorArray,
    ) -> tuple:
        down, across = _compute_down_row(weights, rows_above, down)
        terms = _compute_row_terms(weights, rows_above[:, 1:], right, across)
        pixels, right = _decode_columns(weights, terms, observed[row], epsilon)
        features = tf.transpose(_pixel_features(pixels), [1, 0, 2])[:, tf.newaxis]
        rows_above = tf.concat([rows_above[:, 1:], features], axis=1)
        return row + 1, rows_above, down, right, decoded.write(row, pixels)

    batch = tf.shape(levels)[0]
    rows_above = tf.zeros([batch, 2, width, channels + 1], _DTYPE)
    inputs = [
        tf.zeros([batch, 1, width, convolution.kernel.shape[2]], _DTYPE)
        for convolution in _right_convolutions(weights)
    ]
    decoded = tf.TensorArray(_DTYPE, height, element_shape=[width, None, channels])
    start = (0, rows_above, inputs, list(inputs), decoded)
    *_, decoded = tf.while_loop(
        lambda row, *_: row < height, decode_row, start, parallel_iterations=1
    )
    return tf.cast(tf.transpose(decoded.stack(), [2, 0, 1, 3]), tf.int32)


def _compute_down_row(
    weights: PixelCnnWeights, rows_above: tf.Tensor, previous: _Activations
) -> tuple[_Activations, _Activations]:
    """Computes one row of the stream of rows above.

    Args:
        weights: Of the PixelCNN.
        rows_above: Features of the pixels of the two rows above, `(batch, 2, width, features)`.
        previous: Activations of this stream in the row above, `(batch, 1, width, features)` each.

    Returns:
        Its activations in this row, and what each block gives to the other stream.
    """
    stream = _convolve(rows_above, weights.down_input, (1, 1))
    activations, across = [], []
    for index, (block, other) in enumerate(
        zip(weights.down_blocks, weights.right_blocks, strict=True)
    ):
        first, second = previous[2 * index : 2 * index + 2]
        activations.append(_concatenated_elu(stream))
        features = tf.concat([first, activations[-1]], axis=1)
        activations.append(_concatenated_elu(_convolve(features, block.first, (1, 1))))
        features = tf.concat([second, activations[-1]], axis=1)
        stream += _gate(_convolve(features, block.second, (1, 1)))
        across.append(_convolve(_concatenated_elu(stream), other.across, (0, 0)))
    return activations, across


def _compute_row_terms(
    weights: PixelCnnWeights, row_above: tf.Tensor, previous: _Activations, across: _Activations
) -> tf.Tensor:
    """Sums what the convolutions of the second stream take from the row above and the other stream.

    Returns:
        The terms of all convolutions side by side, `(width, batch, terms)`.
    """
    above = _convolve(row_above, weights.right_input_above, (1, 1))
    left = _convolve(row_above, _upper_row(weights.right_input_left), (1, 0))[:, :, :-1]
    terms = [above + left]
    for index, block in enumerate(weights.right_blocks):
        first, second = previous[2 * index : 2 * index + 2]
        terms.append(_convolve(first, _upper_row(block.first), (1, 0)) + across[index])
        terms.append(_convolve(second, _upper_row(block.second), (1, 0)))
    return tf.transpose(tf.squeeze(tf.concat(terms, axis=-1), 1), [1, 0, 2])


def _decode_columns(
    weights: PixelCnnWeights, terms: tf.Tensor, observed: tf.Tensor, epsilon: tf.Tensor
) -> tuple[tf.Tensor, _Activations]:
    """Decodes one row.

    Args:
        weights: Of the PixelCNN.
        terms: Of the convolutions, from the row above, `(width, batch, terms)`.
        observed: Levels to stay near, `(width, batch, channels)`.
        epsilon: Largest change.

    Returns:
        Levels `(width, batch, channels)`, and the activations of the second stream in this row,
        `(batch, 1, width, features)` each.
    """
    width, _, channels = observed.shape
    sizes = [convolution.kernel.shape[2] for convolution in _right_convolutions(weights)]

    def decode_pixel(
        column: tf.Tensor, carried: tf.Tensor, pixels: tf.TensorArray, row: tf.TensorArray
    ) -> tuple:
        stream, activations, onward = _compute_pixel(weights, terms[column] + carried)
        parameters = tf.nn.elu(stream) @ _matrix(weights.parameters.kernel[0, 0])
        parameters += _matrix(weights.parameters.bias)
        levels = _choose_levels(parameters, observed[column], epsilon)
        onward = [_pixel_features(levels) @ _matrix(weights.right_input_left.kernel[1, 0]), *onward]
        row = row.write(column, tf.concat(activations, axis=-1))
        return column + 1, tf.concat(onward, axis=-1), pixels.write(column, levels), row

    pixels = tf.TensorArray(_DTYPE, width, element_shape=[None, channels])
    row = tf.TensorArray(_DTYPE, width, element_shape=[None, sum(sizes)])
    *_, pixels, row = tf.while_loop(
        lambda column, *_: column < width,
        decode_pixel,
        (0, tf.zeros_like(terms[0]), pixels, row),
        parallel_iterations=1,
    )
    activations = tf.transpose(row.stack(), [1, 0, 2])[:, tf.newaxis]
    return pixels.stack(), tf.split(activations, sizes, axis=-1)


def _compute_pixel(
    weights: PixelCnnWeights, terms: tf.Tensor
) -> tuple[tf.Tensor, _Activations, _Activations]:
    """Computes one column of each layer of the second stream.

    Args:
        weights: Of the PixelCNN.
        terms: Of all convolutions, from the row above and from the left, `(batch, terms)`.

    Returns:
        The stream's last features, the activations, and the terms for the right neighbour.
    """
    convolutions = _right_convolutions(weights)
    sizes = [weights.right_input_above.bias.size, *(each.bias.size for each in convolutions)]
    stream, *terms = tf.split(terms, sizes, axis=-1)
    activations, onward = [], []
    features = stream
    for index, convolution in enumerate(convolutions):
        activations.append(_concatenated_elu(features))
        left, own = convolution.kernel[1]
        both = activations[-1] @ _matrix(np.concatenate([own, left], axis=-1))
        features, right = tf.split(both, 2, axis=-1)
        features += terms[index]
        onward.append(right)
        if index % 2:
            stream += _gate(features)
            features = stream
    return stream, activations, onward


def _choose_levels(parameters: tf.Tensor, observed: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    """Chooses the most probable feasible level of each channel in turn, `(batch, channels)`."""
    channels = observed.shape[-1]
    mixture = split_parameters(parameters, channels)
    radius = tf.cast(epsilon, _DTYPE)
    lowest = tf.maximum(observed - radius, 0.0)
    highest = tf.minimum(observed + radius, LEVELS - 1.0)
    steps = tf.range(tf.minimum(2.0 * radius + 1.0, float(LEVELS)))
    weights, chosen = mixture.log_weights, tf.zeros_like(observed[:, :0])
    for channel in range(channels):
        candidates = lowest[:, channel : channel + 1] + steps
        masses = component_log_probabilities(mixture, channel, chosen, candidates)
        joint = weights[:, tf.newaxis] + masses
        is_feasible = candidates <= highest[:, channel : channel + 1]
        scores = tf.where(is_feasible, tf.reduce_logsumexp(joint, axis=-1), -np.inf)
        best = tf.argmax(scores, axis=-1)
        weights = tf.gather(joint, best, axis=1, batch_dims=1)
        level = tf.gather(candidates, best, axis=1, batch_dims=1)
        chosen = tf.concat([chosen, level[:, tf.newaxis]], axis=-1)
    return chosen


def _pixel_features(levels: tf.Tensor) -> tf.Tensor:
    """What the network sees of pixels: levels on [-1, 1] and the one that borders lack."""
    return tf.concat([center_levels(levels), tf.ones_like(levels[..., :1])], axis=-1)


def _convolve(rows: tf.Tensor, weights: ConvolutionWeights, padding: tuple[int, int]) -> tf.Tensor:
    """Convolves as many rows as the kernel has to one, padded left and right."""
    rows = tf.pad(rows, [[0, 0], [0, 0], padding, [0, 0]])
    return tf.nn.conv2d(rows, _matrix(weights.kernel), 1, "VALID") + _matrix(weights.bias)


def _right_convolutions(weights: PixelCnnWeights) -> list[ConvolutionWeights]:
    return [each for block in weights.right_blocks for each in (block.first, block.second)]


def _upper_row(weights: ConvolutionWeights) -> ConvolutionWeights:
    return ConvolutionWeights(weights.kernel[:1], weights.bias)


def _matrix(values: np.ndarray) -> tf.Tensor:
    return tf.constant(values, _DTYPE)


def _concatenated_elu(features: tf.Tensor) -> tf.Tensor:
    return tf.concat([tf.nn.elu(features), tf.nn.elu(-features)], axis=-1)


def _gate(features: tf.Tensor) -> tf.Tensor:
    values, gates = tf.split(features, 2, axis=-1)
    return values * tf.sigmoid(gates)
