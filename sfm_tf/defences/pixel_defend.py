"""PixelDefend (Song et al. 2018, "PixelDefend", arXiv:1710.10766): images moved to likely ones.

The published attack code (Athalye et al. 2018) evaluates the network anew for each channel of each
pixel and keeps the weights of the mixture while it goes through the channels of a pixel. Here
activations are cached, and P(green | red) and P(blue | red, green) are those of the mixture.
"""

import functools

import keras
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.pixel_cnn import LEVELS, expected_images
from sfm_tf.models.pixel_cnn_decoding import Decoder, compile_decoder, read_weights
from sfm_tf.preprocessors.operation import Operation, Parameter, static_image_shape

_HIGHEST = LEVELS - 1.0


def pixel_defend_operation(pixel_cnn: keras.Model) -> Operation:
    """Returns PixelDefend as an operation of a chain, `pixel_defend_EPSILON`.

    Algorithm 1 of Song et al. replaces each value, in raster order, by the most probable level near
    it: of those that differ from the image's, rounded to 8 bits, by at most epsilon, the one most
    probable under the PixelCNN given all that was replaced before; the lowest where several are.
    Epsilon is 0 to 255, in 1/255; 16 for CIFAR-10 and 32 for Fashion-MNIST in the publication. The
    result is of whole levels and has no gradient.

    Args:
        pixel_cnn: Made by `build_pixel_cnn` for images of one shape. Its weights are copied:
            training it on changes the smooth stand-in only.

    Raises:
        SfmError: If it is another kind of model. The operation itself raises it for images of
            another shape.
    """
    weights = read_weights(pixel_cnn)
    return Operation(
        functools.partial(_purify, compile_decoder(weights), weights.image_shape),
        functools.partial(purify_smoothly, pixel_cnn=pixel_cnn),
        (Parameter("epsilon", 0, LEVELS - 1),),
        quantises=True,
        content=weights.digest(),
    )


def _purify(
    decode: Decoder, image_shape: tuple[int, int, int], images: tf.Tensor, epsilon: int
) -> tf.Tensor:
    found = static_image_shape(images)
    if found != image_shape:
        raise SfmError(
            f"Invalid images of shape {found}; the PixelCNN was made for {image_shape}. Fit the "
            "defences to images like these."
        )
    # From here to the end the values are integers, so that no tape records the decoding.
    levels = tf.cast(tf.round(tf.clip_by_value(images, 0.0, 1.0) * _HIGHEST), tf.int32)
    return tf.cast(decode(levels, epsilon), tf.float32) / _HIGHEST


def purify_smoothly(images: tf.Tensor, epsilon: int, pixel_cnn: keras.Model) -> tf.Tensor:
    """Moves each value towards its mean under the PixelCNN given the image itself, in one pass.

    `x + epsilon tanh((E(x) - x) / epsilon)` is the mean where that is near, and where it is far off
    the border of what is allowed, as in PixelDefend: there the gradient is the identity's, here it
    goes to the earlier pixels. The purified values before a pixel are replaced by the image's,
    which makes it one evaluation of the network, and the most probable level by the mean.

    Args:
        images: float32 in [0, 1], `(batch, height, width, channels)`.
        epsilon: Largest change, in 1/255.
        pixel_cnn: Made by `build_pixel_cnn` for images of this shape.

    Returns:
        float32, same shape as `images`, within epsilon of them.
    """
    if epsilon == 0:
        return tf.identity(images)
    radius = epsilon / _HIGHEST
    distances = expected_images(images, pixel_cnn(images, training=False)) - images
    return images + radius * tf.tanh(distances / radius)
