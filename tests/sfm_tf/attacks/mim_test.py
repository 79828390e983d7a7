import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import MomentumIterativeMethod as ArtMomentumIterativeMethod
from art.attacks.evasion import ProjectedGradientDescent as ArtProjectedGradientDescent
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification.tensorflow import TensorFlowV2Classifier
from scipy.special import softmax

from sfm_tf.attacks.mim import MomentumIterativeMethod
from sfm_tf.models.art_classifier import wrap_classifier

SHAPE = (8, 8, 1)
SETTINGS = {"epsilon": 0.1, "step_size": 0.02, "iterations": 5}


class Unchanged(Preprocessor):
    """Not TensorFlow's, so that ART takes its NumPy path, which alone has momentum."""

    def __call__(self, x, y=None):
        return x, y


class Wavy(keras.Model):
    """Three logits that rise and fall within an attack's reach; counts its Python runs."""

    def __init__(self):
        super().__init__()
        self.kernel = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
        self.calls = 0

    def call(self, images):
        self.calls += 1
        return tf.reshape(tf.sin(25.0 * images), (-1, 64)) @ self.kernel


def _convolutional_model():
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(SHAPE),
        keras.layers.Conv2D(6, 3, activation="relu"),
        keras.layers.Conv2D(6, 3, strides=2, activation="tanh"),
        keras.layers.Flatten(),
        keras.layers.Dense(5),
    ]
    return keras.Sequential(layers)


def _linear_classifier(kernel):
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False)]
    model = keras.Sequential(layers)
    model.set_weights([kernel])
    return wrap_classifier(model, 2, SHAPE, 16)


def _samples(class_count, low=0.0, high=1.0, count=20):
    random = np.random.default_rng(1)
    images = random.uniform(low, high, (count, *SHAPE)).astype(np.float32)
    return images, random.integers(0, class_count, count)


@pytest.mark.parametrize(
    ("norm", "epsilon", "step_size", "targeted", "momentum"),
    [
        (math.inf, 0.2, 0.05, False, 1.0),
        (math.inf, 0.2, 0.05, True, 0.4),
        (2, 1.5, 0.4, False, 0.4),
        (2, 1.5, 0.4, True, 1.0),
    ],
)
def test_makes_the_images_that_art_makes(norm, epsilon, step_size, targeted, momentum):
    model, (images, labels) = _convolutional_model(), _samples(5)
    on_the_numpy_path = TensorFlowV2Classifier(
        model,
        5,
        SHAPE,
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
        clip_values=(0.0, 1.0),
        preprocessing_defences=Unchanged(),
        preprocessing=None,
    )
    limits = {"norm": norm, "targeted": targeted, "batch_size": 16}
    art_limits = {"eps": epsilon, "eps_step": step_size, "max_iter": 10, "verbose": False}
    reference = ArtMomentumIterativeMethod(
        on_the_numpy_path, decay=momentum, **art_limits, **limits
    )
    attack = MomentumIterativeMethod(
        wrap_classifier(model, 5, SHAPE, 16),
        epsilon=epsilon,
        step_size=step_size,
        iterations=10,
        momentum=momentum,
        **limits,
    )
    expected = reference.generate(images, labels)
    np.testing.assert_allclose(attack.generate(images, labels), expected, atol=2e-6)
    plain = ArtProjectedGradientDescent(on_the_numpy_path, **art_limits, **limits)
    assert np.abs(plain.generate(images, labels) - expected).max() > step_size / 20


def test_art_still_refuses_momentum_on_its_tensorflow_path():
    attack = ArtMomentumIterativeMethod(wrap_classifier(_convolutional_model(), 5, SHAPE, 16))
    with pytest.raises(NotImplementedError):
        attack.generate(*_samples(5))


def test_without_momentum_makes_the_images_of_arts_pgd():
    classifier, (images, labels) = (
        wrap_classifier(_convolutional_model(), 5, SHAPE, 16),
        _samples(5),
    )
    reference = ArtProjectedGradientDescent(
        classifier, eps=0.1, eps_step=0.02, max_iter=5, batch_size=16, verbose=False
    )
    attack = MomentumIterativeMethod(classifier, momentum=0.0, batch_size=16, **SETTINGS)
    expected = reference.generate(images, labels)
    np.testing.assert_allclose(attack.generate(images, labels), expected, atol=1e-6)


def test_dividing_by_the_mean_instead_of_the_norm_steps_the_same_way():
    model, (images, labels) = Wavy(), _samples(3)
    moved, velocity = images.astype(np.float64), 0.0
    for _ in range(5):
        error = softmax(np.sin(25 * moved).reshape(20, 64) @ model.kernel, axis=1)
        error[np.arange(20), labels] -= 1
        gradient = (error @ model.kernel.T).reshape(images.shape) * 25 * np.cos(25 * moved)
        velocity = velocity + gradient / np.abs(gradient).mean(axis=(1, 2, 3), keepdims=True)
        moved = np.clip(moved + 0.02 * np.sign(velocity), 0, 1)
        moved = np.clip(moved, images - 0.1, images + 0.1)
    attack = MomentumIterativeMethod(wrap_classifier(model, 3, SHAPE, 16), **SETTINGS)
    wrong = np.abs(attack.generate(images, labels) - moved) > 1e-4
    # Where a gradient is all but zero, float32 and float64 may differ in its sign.
    assert wrong.mean() < 0.005


@pytest.mark.parametrize(
    ("norm", "targeted", "keep_best"), [(math.inf, True, True), (2, False, False)]
)
def test_finds_the_worst_perturbation_of_a_linear_model(norm, targeted, keep_best):
    kernel = np.random.default_rng(0).normal(scale=0.2, size=(64, 2)).astype(np.float32)
    images, labels = _samples(2, 0.3, 0.7)
    slope = (kernel[:, 1 - labels] - kernel[:, labels]).T.reshape(images.shape)
    slope = -slope if targeted else slope
    lengths = np.linalg.norm(slope.reshape(20, -1), axis=1)[:, None, None, None]
    worst = {math.inf: np.sign(slope), 2: slope / lengths}[norm]
    attack = MomentumIterativeMethod(
        _linear_classifier(kernel),
        norm=norm,
        epsilon=0.2,
        step_size=0.03,
        iterations=9,
        targeted=targeted,
        keep_best=keep_best,
    )
    np.testing.assert_allclose(attack.generate(images, labels), images + 0.2 * worst, atol=1e-6)


def test_a_random_start_reaches_the_same_worst_perturbation():
    kernel = np.random.default_rng(0).normal(scale=0.2, size=(64, 2)).astype(np.float32)
    images, labels = _samples(2, 0.3, 0.7)
    slope = (kernel[:, 1 - labels] - kernel[:, labels]).T.reshape(images.shape)
    attack = MomentumIterativeMethod(
        _linear_classifier(kernel), epsilon=0.2, step_size=0.05, iterations=9, random_start=True
    )
    expected = images + 0.2 * np.sign(slope)
    np.testing.assert_allclose(attack.generate(images, labels), expected, atol=1e-6)


def test_the_smallest_gradients_still_move_the_image():
    """A mean over the 64 pixels would be below float32's normal range and count as zero."""
    kernel = np.zeros((64, 2), np.float32)
    kernel[5, 0] = 8e-38
    images = np.full((1, *SHAPE), 0.5, np.float32)
    attack = MomentumIterativeMethod(_linear_classifier(kernel), **SETTINGS)
    moved = attack.generate(images, np.array([0])).ravel()
    assert moved[5] == pytest.approx(0.4, abs=1e-6)
    assert np.delete(moved, 5).tolist() == [0.5] * 63
