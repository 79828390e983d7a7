"""Greedy decoding of images by a PixelCNN, pixel after pixel, each activation computed once.

The stream of rows above is computed a row at a time, when the rows before are decoded. So is what
the other stream takes from the row above. What is left for each pixel are products with its own
activations: of one column of each layer. Each serves the pixel itself and its right neighbour.

All is in float64. Where two levels are about equally probable, float32 would choose between them by
the order of its sums, which differs with the size of the batch and with the processor.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

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

Decoder = Callable[[tf.Tensor, "tf.Tensor | int"], tf.Tensor]

_DTYPE = tf.float64
_Activations = list[tf.Tensor]
"""Inputs of both convolutions of each block of a stream, in order."""


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution: float32 kernel `(rows, columns, inputs, outputs)` and bias `(outputs,)`."""

    kernel: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class PixelCnnWeights:
    """All weights of a model of `build_pixel_cnn`.

    Attributes:
        image_shape: Height and width in pixels, and channels.
        depth: Number of blocks of each stream.
        layers: The convolutions, by the names that they have in the model.
    """

    image_shape: tuple[int, int, int]
    depth: int
    layers: Mapping[str, Convolution]

    def digest(self) -> str:
        """Returns a SHA-256, in hexadecimal, equal where two networks compute the same.

        Shapes and order say the architecture: depth, width, and number of logistics.
        """
        digest = hashlib.sha256(repr(self.image_shape).encode())
        for layer in self.layers.values():
            for values in (layer.kernel, layer.bias):
                digest.update(f"{values.dtype}{values.shape}".encode())
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def blocks_of(self, stream: str, convolutions: Sequence[str]) -> list[Convolution]:
        """Returns these convolutions of each block of the stream `down` or `right`, in order."""
        return [self.layers[name] for name in _block_names(stream, self.depth, convolutions)]


def read_weights(pixel_cnn: keras.Model) -> PixelCnnWeights:
    """Copies the weights of a model; later training of it does not change the copy.

    Args:
        pixel_cnn: Made by `build_pixel_cnn`, or loaded from such a model's file.

    Raises:
        SfmError: If it is another kind of model.
    """
    layers = {layer.name: layer for layer in pixel_cnn.layers}
    depth = sum(f"down{number}_first" in layers for number in range(1, len(layers)))
    names = [
        *("down_input", "right_input_above", "right_input_left"),
        *_block_names("down", depth, ("first", "second")),
        *_block_names("right", depth, ("first", "second", "across")),
        "parameters",
    ]

    def read(name: str) -> Convolution:
        # A graph under construction has no values: they are read outside of it.
        with tf.init_scope():
            return Convolution(layers[name].kernel.numpy(), layers[name].bias.numpy())

    try:
        image_shape = tuple(pixel_cnn.input_shape[1:])
        return PixelCnnWeights(image_shape, depth, {name: read(name) for name in names})
    except (AttributeError, KeyError, TypeError) as error:
        raise SfmError(
            f"Model {pixel_cnn.name!r} is no PixelCNN; expected one that build_pixel_cnn made."
        ) from error


def _block_names(stream: str, depth: int, convolutions: Sequence[str]) -> list[str]:
    return [f"{stream}{number}_{each}" for number in range(1, depth + 1) for each in convolutions]


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
    stream = _convolve(rows_above, weights.layers["down_input"], (1, 1))
    activations, across = [], []
    for index in range(weights.depth):
        name = f"down{index + 1}"
        first, second = previous[2 * index : 2 * index + 2]
        activations.append(_concatenated_elu(stream))
        features = tf.concat([first, activations[-1]], axis=1)
        activations.append(
            _concatenated_elu(_convolve(features, weights.layers[f"{name}_first"], (1, 1)))
        )
        features = tf.concat([second, activations[-1]], axis=1)
        stream += _gate(_convolve(features, weights.layers[f"{name}_second"], (1, 1)))
        other = weights.layers[f"right{index + 1}_across"]
        across.append(_convolve(_concatenated_elu(stream), other, (0, 0)))
    return activations, across


def _compute_row_terms(
    weights: PixelCnnWeights, row_above: tf.Tensor, previous: _Activations, across: _Activations
) -> tf.Tensor:
    """Sums what the convolutions of the second stream take from the row above and the other stream.

    Returns:
        The terms of all convolutions side by side, `(width, batch, terms)`.
    """
    above = _convolve(row_above, weights.layers["right_input_above"], (1, 1))
    left = _convolve(row_above, _upper_row(weights.layers["right_input_left"]), (1, 0))[:, :, :-1]
    terms = [above + left]
    for index, layer in enumerate(_right_convolutions(weights)):
        term = _convolve(previous[index], _upper_row(layer), (1, 0))
        # The other stream joins between a block's two convolutions.
        terms.append(term if index % 2 else term + across[index // 2])
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
        parameters = tf.nn.elu(stream) @ _matrix(weights.layers["parameters"].kernel[0, 0])
        parameters += _matrix(weights.layers["parameters"].bias)
        levels = _choose_levels(parameters, observed[column], epsilon)
        onward = [
            _pixel_features(levels) @ _matrix(weights.layers["right_input_left"].kernel[1, 0]),
            *onward,
        ]
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
    sizes = [
        weights.layers["right_input_above"].bias.size,
        *(each.bias.size for each in convolutions),
    ]
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
    """Returns what the network sees of pixels: levels on [-1, 1], and a one that borders lack."""
    return tf.concat([center_levels(levels), tf.ones_like(levels[..., :1])], axis=-1)


def _convolve(rows: tf.Tensor, layer: Convolution, padding: tuple[int, int]) -> tf.Tensor:
    """Convolves the rows, as many as the kernel has, to a single one."""
    rows = tf.pad(rows, [[0, 0], [0, 0], padding, [0, 0]])
    return tf.nn.conv2d(rows, _matrix(layer.kernel), 1, "VALID") + _matrix(layer.bias)


def _right_convolutions(weights: PixelCnnWeights) -> list[Convolution]:
    return weights.blocks_of("right", ("first", "second"))


def _upper_row(layer: Convolution) -> Convolution:
    return Convolution(layer.kernel[:1], layer.bias)


def _matrix(values: np.ndarray) -> tf.Tensor:
    return tf.constant(values, _DTYPE)


def _concatenated_elu(features: tf.Tensor) -> tf.Tensor:
    return tf.concat([tf.nn.elu(features), tf.nn.elu(-features)], axis=-1)


def _gate(features: tf.Tensor) -> tf.Tensor:
    values, gates = tf.split(features, 2, axis=-1)
    return values * tf.sigmoid(gates)
