"""Images and models that tests of attacks share; each is made once per process."""

import functools

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

DIGIT_SHAPE = (8, 8, 1)


class Linear(keras.Model):
    """Logits linear in the pixels.

    Attributes:
        kernel: Float32 `(pixels, classes)`.
        calls: How often Python ran the forward pass: in a compiled attack, how often it compiled.
        rows: How many images the model was shown.
    """

    def __init__(self, class_count: int, pixels: int = 64, scale: float = 1.0) -> None:
        super().__init__()
        kernel = np.random.default_rng(0).normal(size=(pixels, class_count))
        self.kernel = (scale * kernel).astype(np.float32)
        self.calls = 0
        self.rows = tf.Variable(0)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        self.calls += 1
        self.rows.assign_add(tf.shape(images)[0])
        return tf.reshape(images, (-1, len(self.kernel))) @ self.kernel


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns 1797 digits in [0, 1] of `DIGIT_SHAPE`, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return (images / 16).reshape(-1, *DIGIT_SHAPE).astype(np.float32), labels


@functools.cache
def digit_model() -> keras.Model:
    """Returns a small convolutional network that was trained on all digits but the first 200."""
    images, labels = digits()
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(DIGIT_SHAPE),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(images[200:], labels[200:], batch_size=64, epochs=6, verbose=0)
    return model


def predictions(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Returns the class that a model gives each image."""
    return np.asarray(model(images)).argmax(axis=1)


def accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of images that a model gives their label."""
    return float(np.mean(predictions(model, images) == labels))


def cross_entropy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the cross-entropy of each image in float64."""
    logits = np.asarray(model(images), np.float64)
    largest = logits.max(axis=1)
    sums = np.exp(logits - largest[:, None]).sum(axis=1)
    return np.log(sums) + largest - logits[np.arange(len(labels)), labels]


def norms(change: np.ndarray, norm: float) -> np.ndarray:
    """Returns the norm of each image's change in float64."""
    return np.linalg.norm(change.reshape(len(change), -1).astype(np.float64), norm, axis=1)
