"""The classifier that every attack of the benchmark attacks, and the images."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import keras
import numpy as np
from sklearn.datasets import load_digits

from sfm_tf.models.resnet import build_classifier

SHAPE = (32, 32, 3)
CLASS_COUNT = 10

_SIDE = SHAPE[0]
_ATTACKED = 300
_LEARNING_RATE = 0.002
# Less than black and white, which a search in the tanh space hardly leaves.
_CONTRAST = 0.9
# Training on noise makes a model that 8/255 fools on some digits only: else all attacks look alike.
_NOISE = 0.25


class Target(NamedTuple):
    """What is attacked.

    Attributes:
        model: From float32 images in [0, 1] to float32 logits.
        images: Float32 `(count, 32, 32, 3)`, all of which the model knows.
        labels: Int64 `(count,)`.
    """

    model: keras.Model
    images: np.ndarray
    labels: np.ndarray


def _build_cnn(width: int) -> keras.Model:
    """Returns three convolutions and a linear layer: hardly more than the cost of a call."""
    images = keras.Input(SHAPE)
    features = keras.layers.Normalization(mean=[0.5] * 3, variance=[0.25] * 3)(images)
    for filters, strides in ((width, 1), (width, 2), (2 * width, 2)):
        features = keras.layers.Conv2D(filters, 3, strides=strides, padding="same")(features)
        features = keras.layers.ReLU()(features)
    features = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(images, keras.layers.Dense(CLASS_COUNT)(features))


def _build_resnet(name: str, width: int) -> keras.Model:
    return build_classifier(name, SHAPE, CLASS_COUNT, width, seed=0)


class Architecture(NamedTuple):
    """How to build a classifier, given the channels of its first stage, and how long to train."""

    build: Callable[[int], keras.Model]
    epochs: int


ARCHITECTURES: Mapping[str, Architecture] = {
    "cnn": Architecture(_build_cnn, 25),
    "resnet18": Architecture(functools.partial(_build_resnet, "resnet18"), 5),
    "resnet20": Architecture(functools.partial(_build_resnet, "resnet20"), 5),
}
"""The classifiers by name."""


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns scikit-learn's digits as gray 32x32 images of three channels, and their labels."""
    digits, labels = load_digits(return_X_y=True)
    strokes = [cv2.resize(digit.reshape(8, 8) / 16.0, (_SIDE, _SIDE)) for digit in digits]
    images = 0.5 + _CONTRAST * (np.stack(strokes)[..., None] - 0.5)
    return np.repeat(images, 3, axis=3).astype(np.float32), labels.astype(np.int64)


def prepare_target(name: str, width: int, count: int) -> Target:
    """Trains a classifier and picks the images to attack.

    Args:
        name: A key of `ARCHITECTURES`.
        width: Channels of its first stage.
        count: Images to attack; fewer if the model knows fewer of those held out.
    """
    keras.utils.set_random_seed(0)
    images, labels = _digits()
    noise = np.random.default_rng(0).normal(0.0, _NOISE, images[_ATTACKED:].shape)
    noisy = np.clip(images[_ATTACKED:] + noise, 0.0, 1.0).astype(np.float32)
    architecture = ARCHITECTURES[name]
    model = architecture.build(width)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(_LEARNING_RATE), loss)
    model.fit(noisy, labels[_ATTACKED:], batch_size=64, epochs=architecture.epochs, verbose=0)
    images, labels = images[:_ATTACKED], labels[:_ATTACKED]
    predictions = np.argmax(model.predict(images, verbose=0), axis=1)
    known = np.flatnonzero(predictions == labels)[:count]
    return Target(model, images[known], labels[known])
