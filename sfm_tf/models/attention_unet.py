"""The masker G: an Attention U-Net (Oktay et al. 2018, "Attention U-Net", arXiv:1804.03999).

The layers and their widths are those of the most used public implementation (LeeJunHyun,
Image_Segmentation, `AttU_Net`), down to the biases that batch normalisation makes redundant, so
that parameter counts can be compared. Yu et al. 2022 (section 6.1) name the architecture only.
"""

import math
import random

import keras

from sfm_tf.errors import SfmError

_BATCH_NORM_MOMENTUM = 0.9
"""Short trainings need moving averages that follow; Keras' own 0.99 lags hundreds of steps."""

_Features = keras.KerasTensor


def build_masker(
    input_shape: tuple[int, int, int],
    width: int,
    depth: int,
    seed: int | None = None,
    mask_bias: float = 0.0,
) -> keras.Model:
    """Builds the masker G, under Keras' current dtype policy.

    Args:
        input_shape: Height and width in pixels, and channels.
        width: Channels at full resolution, at least 2; they double with each halving.
        depth: Times the resolution is halved; height and width must be multiples of `2**depth`.
        seed: Seed of the initial weights; None for different ones each time.
        mask_bias: Bias of the last layer at the start: at 0 the mask begins about 1/2.

    Returns:
        A model from float32 images in [0, 1] of shape `(batch, height, width, channels)` to a
        float32 mask in [0, 1] of shape `(batch, height, width, 1)`.

    Raises:
        SfmError: If the images cannot be halved that often.
    """
    _check_depth(input_shape[0], input_shape[1], depth)
    seeds = random.Random(seed)
    images = keras.Input(input_shape, name="images")
    features = _double_convolution(images, width, seeds, "encoder0")
    skips = []
    for level in range(1, depth + 1):
        skips.append(features)
        features = keras.layers.MaxPooling2D(name=f"encoder{level}_pooling")(features)
        features = _double_convolution(features, width * 2**level, seeds, f"encoder{level}")
    for level in reversed(range(depth)):
        features = _decode(features, skips[level], width * 2**level, seeds, f"decoder{level}")
    mask = keras.layers.Conv2D(
        1,
        1,
        kernel_initializer=keras.initializers.GlorotUniform(seed=seeds.randrange(2**31)),
        bias_initializer=keras.initializers.Constant(mask_bias),
        activation="sigmoid",
        dtype="float32",
        name="mask",
    )(features)
    return keras.Model(images, mask, name="attention_unet")


def _check_depth(height: int, width: int, depth: int) -> None:
    divisor = math.gcd(height, width)
    largest = (divisor & -divisor).bit_length() - 1  # Trailing zeros: times that 2 divides both.
    if depth > largest:
        raise SfmError(
            f"Images of {height}x{width} pixels cannot be halved {depth} times; expected a masker "
            f"depth of at most {largest}, or images of another size."
        )


def _decode(
    features: _Features, skip: _Features, filters: int, seeds: random.Random, name: str
) -> _Features:
    """Doubles the resolution and joins the attended skip of that resolution."""
    features = keras.layers.UpSampling2D(name=f"{name}_upsampling")(features)
    features = _relu(_convolution(features, filters, 3, seeds, f"{name}_up"), f"{name}_up")
    attended = _attention_gate(skip, features, filters // 2, seeds, f"{name}_gate")
    joined = keras.layers.Concatenate(name=f"{name}_concatenate")([attended, features])
    return _double_convolution(joined, filters, seeds, name)


def _attention_gate(
    skip: _Features, gate: _Features, filters: int, seeds: random.Random, name: str
) -> _Features:
    """Weighs each pixel of the skip by how well it agrees with the gate (Oktay et al., Eq. 1-2)."""
    joined = keras.layers.Add(name=f"{name}_add")(
        [
            _convolution(gate, filters, 1, seeds, f"{name}_gate"),
            _convolution(skip, filters, 1, seeds, f"{name}_skip"),
        ]
    )
    attention = _convolution(_relu(joined, name), 1, 1, seeds, f"{name}_attention")
    attention = keras.layers.Activation("sigmoid", name=f"{name}_sigmoid")(attention)
    return keras.layers.Multiply(name=f"{name}_multiply")([skip, attention])


def _double_convolution(
    features: _Features, filters: int, seeds: random.Random, name: str
) -> _Features:
    for index in (1, 2):
        step = f"{name}_{index}"
        features = _relu(_convolution(features, filters, 3, seeds, step), step)
    return features


def _convolution(
    features: _Features, filters: int, size: int, seeds: random.Random, name: str
) -> _Features:
    """Applies a convolution with bias (He et al. 2015 initialisation) and normalises it."""
    features = keras.layers.Conv2D(
        filters,
        size,
        padding="same",
        kernel_initializer=keras.initializers.HeNormal(seed=seeds.randrange(2**31)),
        name=f"{name}_convolution",
    )(features)
    return keras.layers.BatchNormalization(
        momentum=_BATCH_NORM_MOMENTUM, epsilon=1e-5, name=f"{name}_normalization"
    )(features)


def _relu(features: _Features, name: str) -> _Features:
    return keras.layers.ReLU(name=f"{name}_relu")(features)
