"""Images and models that tests of attacks share; each is made once per process."""

import functools

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from sfm_tf.attacks.attack import choose
from sfm_tf.attacks.norm_balls import BALLS, sample_points
from sfm_tf.models.art_classifier import BatchedTensorFlowClassifier, wrap_classifier

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


class Wavy(keras.Model):
    """Logits that rise and fall within an attack's reach.

    Attributes:
        kernel: Float32 `(pixels, classes)`.
    """

    def __init__(self, class_count: int, pixels: int = 64) -> None:
        super().__init__()
        size = (pixels, class_count)
        self.kernel = np.random.default_rng(0).normal(size=size).astype(np.float32)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.sin(25.0 * images), (-1, len(self.kernel))) @ self.kernel


class Masked(keras.Model):
    """The same predictions with logits so far apart that the cross-entropy has no gradient."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.model = model

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return 1024.0 * self.model(images)


def samples(
    class_count: int, low: float = 0.0, high: float = 1.0, count: int = 20, shape=DIGIT_SHAPE
) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images and labels."""
    random = np.random.default_rng(1)
    images = random.uniform(low, high, (count, *shape)).astype(np.float32)
    return images, random.integers(0, class_count, count)


def convolutional_classifier(shape=DIGIT_SHAPE) -> BatchedTensorFlowClassifier:
    """Returns a small untrained network of five classes."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(shape),
        keras.layers.Conv2D(6, 3, activation="relu"),
        keras.layers.Conv2D(6, 3, strides=2, activation="tanh"),
        keras.layers.Flatten(),
        keras.layers.Dense(5),
    ]
    return wrap_classifier(keras.Sequential(layers), 5, shape, 16)


def linear_classifier(
    slopes: np.ndarray, offsets: np.ndarray | float = 0.0, shape=DIGIT_SHAPE, batch_size: int = 16
) -> BatchedTensorFlowClassifier:
    """Returns a Keras model of one dense layer with these weights `(pixels, classes)`."""
    class_count = slopes.shape[1]
    layers = [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(class_count)]
    model = keras.Sequential(layers)
    model.set_weights([slopes, np.zeros(class_count) + offsets])
    return wrap_classifier(model, class_count, shape, batch_size)


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


def random_starts(images: np.ndarray, norm: float, epsilon: float) -> np.ndarray:
    """Returns where attacks of seed 0 start in the ball, before they clip to [0, 1]."""
    seeds = np.stack([np.zeros(len(images)), np.arange(len(images))], axis=1).astype(np.int32)
    shape = tf.TensorShape(images.shape[1:])
    return images + epsilon * sample_points(BALLS[norm], shape, tf.constant(seeds)).numpy()


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


def advance_all(advance, batch, state, is_finished, batch_size):
    """Does what `advance_unfinished` does, without leaving anything out."""
    return choose(is_finished, state, advance(batch, state))
