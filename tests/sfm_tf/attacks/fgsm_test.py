import math

import numpy as np
import pytest
from art.attacks.evasion import FastGradientMethod as ArtFastGradientMethod

from sfm_tf.attacks.fgsm import FastGradientMethod
from tests.attacked_models import convolutional_classifier, samples

SHAPE = (8, 8, 3)
EPSILON = 8 / 255


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
    classifier = convolutional_classifier(SHAPE)
    images, labels = samples(5, shape=SHAPE)
    reference = ArtFastGradientMethod(
        classifier, norm=norm, eps=epsilon, targeted=targeted, batch_size=16
    )
    attack = FastGradientMethod(
        classifier, norm=norm, epsilon=epsilon, targeted=targeted, loss=loss, batch_size=16
    )
    expected = reference.generate(images, labels)
    assert np.abs(expected - images).max() > EPSILON / 2
    np.testing.assert_allclose(attack.generate(images, labels), expected, atol=1e-6)


@pytest.mark.parametrize("has_labels", [True, False])
def test_with_a_mask_or_without_labels_makes_the_images_that_art_makes(has_labels):
    classifier = convolutional_classifier(SHAPE)
    images, labels = samples(5, shape=SHAPE)
    labels = labels if has_labels else None
    mask = np.random.default_rng(2).integers(0, 2, images.shape).astype(np.float32)
    expected = ArtFastGradientMethod(classifier, eps=EPSILON).generate(images, labels, mask=mask)
    moved = FastGradientMethod(classifier, epsilon=EPSILON).generate(images, labels, mask=mask)
    np.testing.assert_allclose(moved, expected, atol=1e-6)
