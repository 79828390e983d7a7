"""The weights of a PixelCNN as plain arrays, by their role: what decoding needs of the model."""

import dataclasses
import hashlib

import keras
import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError


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
