import math

import keras
import numpy as np
import pytest
from art.attacks.evasion import MomentumIterativeMethod as ArtMomentumIterativeMethod
from art.attacks.evasion import ProjectedGradientDescent as ArtProjectedGradientDescent
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.mim import MomentumIterativeMethod
from sfm_tf.models.art_classifier import wrap_classifier
from tests.attacked_models import (
    DIGIT_SHAPE,
    convolutional_classifier,
    linear_classifier,
    samples,
)

SETTINGS = {"epsilon": 0.1, "step_size": 0.02, "iterations": 5}


class Unchanged(Preprocessor):
    """Not TensorFlow's, so that ART takes its NumPy path, which alone has momentum."""

    def __call__(self, x, y=None):
        return x, y


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
    model, (images, labels) = convolutional_classifier().model, samples(5)
    on_the_numpy_path = TensorFlowV2Classifier(
        model,
        5,
        DIGIT_SHAPE,
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
        wrap_classifier(model, 5, DIGIT_SHAPE, 16),
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
    attack = ArtMomentumIterativeMethod(convolutional_classifier())
    with pytest.raises(NotImplementedError):
        attack.generate(*samples(5))


def test_without_momentum_makes_the_images_of_arts_pgd():
    classifier, (images, labels) = convolutional_classifier(), samples(5)
    reference = ArtProjectedGradientDescent(
        classifier, eps=0.1, eps_step=0.02, max_iter=5, batch_size=16, verbose=False
    )
    attack = MomentumIterativeMethod(classifier, momentum=0.0, batch_size=16, **SETTINGS)
    expected = reference.generate(images, labels)
    np.testing.assert_allclose(attack.generate(images, labels), expected, atol=1e-6)


def test_the_smallest_gradients_still_move_the_image():
    """A mean over the 64 pixels would be below float32's normal range and count as zero."""
    kernel = np.zeros((64, 2), np.float32)
    kernel[5, 0] = 8e-38
    images = np.full((1, *DIGIT_SHAPE), 0.5, np.float32)
    attack = MomentumIterativeMethod(linear_classifier(kernel), **SETTINGS)
    moved = attack.generate(images, np.array([0])).ravel()
    assert moved[5] == pytest.approx(0.4, abs=1e-6)
    assert np.delete(moved, 5).tolist() == [0.5] * 63
