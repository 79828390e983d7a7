"""Residual networks for small images (He et al. 2016, "Deep Residual Learning", CIFAR stem).

The first convolution is 3x3 with stride 1 and there is no max-pooling, as is usual for images of
32 to 64 pixels: the ImageNet stem would throw away three quarters of the pixels twice over.
"""

import random
from collections.abc import Callable, Mapping, Sequence

import keras

from sfm_tf.errors import SfmError

_BATCH_NORM_MOMENTUM = 0.9
"""Short trainings need moving averages that follow; Keras' own 0.99 lags hundreds of steps."""

_Features = keras.KerasTensor
_Block = Callable[[_Features, int, int, random.Random, str], _Features]


def build_classifier(
    name: str,
    input_shape: tuple[int, int, int],
    class_count: int,
    width: int = 64,
    mean: Sequence[float] | None = None,
    variance: Sequence[float] | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Builds the classifier F, under Keras' current dtype policy.

    Args:
        name: `resnet18` or `resnet50`; or `resnet20`, the small one of section 4.2, here with
            projections where its shortcuts change shape.
        input_shape: Height and width in pixels, and channels.
        class_count: Number of classes.
        width: Channels of the first stage; 64 in the publications, 16 for `resnet20`.
        mean: Mean of each channel of the training images; None for 0.5.
        variance: Variance of each channel of the training images; None for 0.25, which with a mean
            of 0.5 maps [0, 1] to [-1, 1].
        seed: Seed of the initial weights; None for different ones each time.

    Returns:
        A model from float32 images in [0, 1] of shape `(batch, height, width, channels)` to
        float32 logits of shape `(batch, class_count)`. Images are normalised inside, in float32.

    Raises:
        SfmError: If there is no such architecture.
    """
    if name not in _ARCHITECTURES:
        raise SfmError(f"Unknown classifier {name!r}; expected one of {', '.join(_ARCHITECTURES)}.")
    seeds = random.Random(seed)
    channels = input_shape[-1]
    images = keras.Input(input_shape, name="images")
    features = keras.layers.Normalization(
        mean=[0.5] * channels if mean is None else [float(value) for value in mean],
        variance=[0.25] * channels if variance is None else [float(value) for value in variance],
        dtype="float32",
        name="normalization",
    )(images)
    features = _relu(_convolution(features, width, 3, 1, seeds, "stem"), "stem")
    features = _stages(features, name, width, seeds)
    features = keras.layers.GlobalAveragePooling2D(name="pooling")(features)
    logits = keras.layers.Dense(
        class_count,
        kernel_initializer=keras.initializers.GlorotUniform(seed=seeds.randrange(2**31)),
        dtype="float32",
        name="logits",
    )(features)
    return keras.Model(images, logits, name=name)


def _stages(features: _Features, name: str, width: int, seeds: random.Random) -> _Features:
    """Applies the stages; each but the first halves the resolution and doubles the width."""
    block, depths = _ARCHITECTURES[name]
    for stage, depth in enumerate(depths):
        for index in range(depth):
            strides = 2 if stage > 0 and index == 0 else 1
            place = f"stage{stage + 1}_block{index + 1}"
            features = block(features, width * 2**stage, strides, seeds, place)
    return features


def _basic_block(
    inputs: _Features, filters: int, strides: int, seeds: random.Random, name: str
) -> _Features:
    """Applies two 3x3 convolutions with a shortcut around them."""
    features = _relu(_convolution(inputs, filters, 3, strides, seeds, f"{name}_1"), f"{name}_1")
    features = _convolution(features, filters, 3, 1, seeds, f"{name}_2")
    return _add_shortcut(inputs, features, strides, seeds, name)


def _bottleneck_block(
    inputs: _Features, filters: int, strides: int, seeds: random.Random, name: str
) -> _Features:
    """Applies 1x1, 3x3 and four times as wide 1x1 convolutions with a shortcut around them."""
    features = _relu(_convolution(inputs, filters, 1, 1, seeds, f"{name}_1"), f"{name}_1")
    features = _relu(_convolution(features, filters, 3, strides, seeds, f"{name}_2"), f"{name}_2")
    features = _convolution(features, 4 * filters, 1, 1, seeds, f"{name}_3")
    return _add_shortcut(inputs, features, strides, seeds, name)


def _add_shortcut(
    inputs: _Features, residual: _Features, strides: int, seeds: random.Random, name: str
) -> _Features:
    """Adds the inputs to the residual, through a projection where the shapes differ.

    A projection with strides is one of every second pixel. It is not one convolution, because
    TensorFlow 2.21 on CPUs with AVX-512 (oneDNN) ends with a segmentation fault in the gradient of
    a 1x1 convolution with strides, for 12 channels or fewer and images of 64 pixels or more.
    """
    if inputs.shape != residual.shape:
        place = f"{name}_shortcut"
        if strides > 1:
            # The mean of a window of one pixel: exact, and faster than a strided slice.
            subsampling = keras.layers.AveragePooling2D(1, strides, name=f"{place}_subsampling")
            inputs = subsampling(inputs)
        inputs = _convolution(inputs, residual.shape[-1], 1, 1, seeds, place)
    return _relu(keras.layers.Add(name=f"{name}_add")([inputs, residual]), name)


def _convolution(
    features: _Features, filters: int, size: int, strides: int, seeds: random.Random, name: str
) -> _Features:
    """Applies a convolution without bias (He et al. 2015 initialisation) and normalises it."""
    features = keras.layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.HeNormal(seed=seeds.randrange(2**31)),
        name=f"{name}_convolution",
    )(features)
    return keras.layers.BatchNormalization(
        momentum=_BATCH_NORM_MOMENTUM, epsilon=1e-5, name=f"{name}_normalization"
    )(features)


def _relu(features: _Features, name: str) -> _Features:
    return keras.layers.ReLU(name=f"{name}_relu")(features)


_ARCHITECTURES: Mapping[str, tuple[_Block, tuple[int, ...]]] = {
    "resnet18": (_basic_block, (2, 2, 2, 2)),
    "resnet20": (_basic_block, (3, 3, 3)),
    "resnet50": (_bottleneck_block, (3, 4, 6, 3)),
}
"""The block of each network, and how many of it each stage has."""
