import math

import keras
import numpy as np
import pytest
from art.attacks.evasion import FastGradientMethod as ArtFastGradientMethod

from sfm_tf.attacks.fgsm import FastGradientMethod
from sfm_tf.models.art_classifier import wrap_classifier

SHAPE = (8, 8, 3)
EPSILON = 8 / 255


def _convolutional_classifier():
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(SHAPE),
        keras.layers.Conv2D(6, 3, activation="relu"),
        keras.layers.Conv2D(6, 3, strides=2, activation="tanh"),
        keras.layers.Flatten(),
        keras.layers.Dense(5),
    ]
    return wrap_classifier(keras.Sequential(layers), 5, SHAPE, 16)


def _linear_classifier(kernel):
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False)]
    model = keras.Sequential(layers)
    model.set_weights([kernel])
    return wrap_classifier(model, 2, SHAPE, 16)


def _samples(class_count, low=0.0, high=1.0):
    random = np.random.default_rng(1)
    images = random.uniform(low, high, (20, *SHAPE)).astype(np.float32)
    return images, random.integers(0, class_count, 20)


@pytest.mark.parametrize(
    ("norm", "epsilon", "targeted", "loss"),
    [
        (math.inf, EPSILON, False, "cross_entropy"),
        ("inf", EPSILON, True, "stable_cross_entropy"),
        (2, 0.5, False, "stable_cross_entropy"),
        (2, 0.5, True, "cross_entropy"),
    ],
)
def test_makes_the_images_that_art_makes(norm, epsilon, targeted, loss):
    classifier, (images, labels) = _convolutional_classifier(), _samples(5)
    reference = ArtFastGradientMethod(
        classifier, norm=norm, eps=epsilon, targeted=targeted, batch_size=16
    )
    attack = FastGradientMethod(
        classifier, norm=norm, epsilon=epsilon, targeted=targeted, loss=loss, batch_size=16
    )
    expected = reference.generate(images, labels)
    assert np.abs(expected - images).max() > EPSILON / 2
    np.testing.assert_allclose(attack.generate(images, labels), expected, atol=1e-6)


def test_without_labels_makes_the_images_that_art_makes():
    classifier, (images, _) = _convolutional_classifier(), _samples(5)
    expected = ArtFastGradientMethod(classifier, eps=EPSILON).generate(images)
    moved = FastGradientMethod(classifier, epsilon=EPSILON).generate(images)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_with_a_mask_makes_the_images_that_art_makes():
    classifier, (images, labels) = _convolutional_classifier(), _samples(5)
    mask = np.random.default_rng(2).integers(0, 2, images.shape).astype(np.float32)
    expected = ArtFastGradientMethod(classifier, eps=EPSILON).generate(images, labels, mask=mask)
    moved = FastGradientMethod(classifier, epsilon=EPSILON).generate(images, labels, mask=mask)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize(("norm", "targeted"), [(math.inf, True), (2, False)])
def test_finds_the_worst_perturbation_of_a_linear_model(norm, targeted):
    kernel = np.random.default_rng(0).normal(scale=0.1, size=(192, 2)).astype(np.float32)
    images, labels = _samples(2, 0.3, 0.7)
    slope = (kernel[:, 1 - labels] - kernel[:, labels]).T.reshape(images.shape)
    slope = -slope if targeted else slope
    worst = {
        math.inf: np.sign(slope),
        2: slope / np.linalg.norm(slope.reshape(20, -1), axis=1)[:, None, None, None],
    }
    attack = FastGradientMethod(
        _linear_classifier(kernel), norm=norm, epsilon=0.2, targeted=targeted
    )
    expected = images + 0.2 * worst[norm]
    np.testing.assert_allclose(attack.generate(images, labels), expected, atol=1e-6)
