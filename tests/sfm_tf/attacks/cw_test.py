from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import CarliniL2Method

from sfm_tf.attacks.cw import (
    PAPER_SETTINGS,
    STANDARD_SETTINGS,
    CarliniWagner,
    adam_step,
    initial_moments,
)
from sfm_tf.models.art_classifier import wrap_classifier
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from tests.attacked_models import DIGIT_SHAPE, digit_model, linear_classifier, predictions
from tests.attacked_models import digits as all_digits


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_moves_as_the_optimizer_of_keras(scale):
    random = np.random.default_rng(0)
    variable = keras.Variable(np.zeros((3, 4)), dtype="float32")
    optimizer = keras.optimizers.Adam(0.05, epsilon=1e-8)
    optimizer.build([variable])
    points = tf.zeros((3, 4))
    moments = initial_moments(points)
    for done in range(20):
        gradient = tf.constant(scale * random.normal(size=(3, 4)), tf.float32)
        optimizer.apply([gradient])
        movement, moments = adam_step(moments, gradient, tf.constant(done), tf.constant(0.05))
        points += movement
    assert np.abs(points).max() > 0.05
    np.testing.assert_allclose(points, variable.numpy(), atol=1e-6)


def test_a_gradient_of_zero_moves_nothing():
    points = tf.zeros((2, 2))
    movement, _ = adam_step(initial_moments(points), points, tf.constant(0), tf.constant(1.0))
    np.testing.assert_array_equal(movement, np.zeros((2, 2)))


SHORT = {"binary_search_steps": 3, "iterations": 20, "initial_constant": 1.0}
THOROUGH = {"binary_search_steps": 8, "iterations": 200, "initial_constant": 0.1}


DEFAULTS = {"learning_rate": 0.01, "confidence": 0.0, "targeted": False, "abort_early": False}


class Case(NamedTuple):
    """A model that compiles once for all tests, images and the labels it gives them."""

    attack: CarliniWagner
    images: np.ndarray
    labels: np.ndarray

    @property
    def classifier(self):
        return self.attack.estimator

    def run(self, labels=None, batch_size=16, **options):
        """Attacks with these options and otherwise the defaults."""
        self.attack.set_params(**{**DEFAULTS, "batch_size": batch_size, **options})
        return self.attack.run(self.images, self.labels if labels is None else labels)


@pytest.fixture(scope="module")
def binary():
    """A linear model of two classes and gray images that it gives both."""
    random = np.random.default_rng(0)
    images = random.uniform(0.3, 0.7, (16, *DIGIT_SHAPE)).astype(np.float32)
    classifier = linear_classifier(random.normal(size=(64, 2)).astype(np.float32))
    labels = classifier.predict(images).argmax(axis=1)
    return Case(CarliniWagner(classifier, **SHORT, batch_size=16), images, labels)


@pytest.fixture(scope="module")
def digits():
    """A trained classifier and 16 digits that it knows."""
    images, labels = all_digits()
    classifier = wrap_classifier(digit_model(), 10, DIGIT_SHAPE, 16)
    known = np.flatnonzero(classifier.predict(images[:30]).argmax(axis=1) == labels[:30])[:16]
    return Case(CarliniWagner(classifier, **SHORT, batch_size=16), images[known], labels[known])


def _distances(images, adversarial_images):
    return np.linalg.norm((adversarial_images - images).reshape(len(images), -1), axis=1)


def _margins(classifier, images, labels):
    logits = classifier.predict(images)
    is_label = np.eye(logits.shape[1], dtype=bool)[labels]
    return logits[is_label] - np.where(is_label, -np.inf, logits).max(axis=1)


def _distances_to_boundary(attack, images, labels, confidence):
    classifier = attack.estimator
    slopes = classifier.model.get_weights()[0]
    width = np.linalg.norm(slopes[:, 0] - slopes[:, 1])
    return (_margins(classifier, images, labels) + confidence) / width


@pytest.mark.parametrize(
    ("confidence", "targeted", "abort_early", "tolerance"),
    [(0.0, False, False, 0.02), (2.0, True, False, 0.02), (0.0, True, True, 0.05)],
)
def test_goes_no_further_than_to_the_boundary_of_a_linear_model(
    binary, confidence, targeted, abort_early, tolerance
):
    outcome = binary.run(
        1 - binary.labels if targeted else None,
        **THOROUGH,
        confidence=confidence,
        targeted=targeted,
        abort_early=abort_early,
    )
    expected = _distances_to_boundary(*binary, confidence)
    assert outcome.found.all()
    assert expected.min() > 0.0
    ratios = _distances(binary.images, outcome.images) / expected
    assert ratios.min() > 0.9999
    assert ratios.max() < 1.0 + tolerance


def test_the_margin_is_at_least_the_confidence(digits):
    outcome = digits.run(**THOROUGH, confidence=3.0, learning_rate=0.1)
    assert outcome.found.all()
    margins = _margins(digits.classifier, outcome.images, digits.labels)
    assert margins.max() < -3.0 + 1e-4
    assert margins.min() > -4.0


def test_a_targeted_attack_reaches_its_targets_and_goes_further(digits):
    targets = (digits.labels + 1 + np.arange(16) % 9) % 10
    outcome = digits.run(targets, **THOROUGH, learning_rate=0.1, targeted=True)
    assert outcome.found.all()
    np.testing.assert_array_equal(predictions(digits.classifier.model, outcome.images), targets)
    untargeted = digits.run(**THOROUGH, learning_rate=0.1)
    assert untargeted.found.all()
    further, nearest = (_distances(digits.images, o.images) for o in (outcome, untargeted))
    assert np.median(further) > np.median(nearest)


def test_finds_no_less_and_nothing_further_than_art(digits):
    classifier, images, labels = digits.classifier, digits.images, digits.labels
    reference = CarliniL2Method(
        classifier,
        binary_search_steps=2,
        max_iter=20,
        initial_const=1.0,
        batch_size=16,
        verbose=False,
    ).generate(images, labels)
    settings = {"binary_search_steps": 2, "iterations": 20, "initial_constant": 1.0}
    outcome = digits.run(**settings, learning_rate=0.1)
    is_found = classifier.predict(reference).argmax(axis=1) != labels
    assert is_found.mean() > 0.5
    assert outcome.found.sum() >= is_found.sum()
    theirs = np.median(_distances(images, reference)[is_found])
    assert np.median(_distances(images, outcome.images)[outcome.found]) <= theirs


def test_finds_the_images_of_foolbox(digits):
    foolbox = pytest.importorskip("foolbox")
    classifier, images, labels = digits.classifier, digits.images, digits.labels
    reference = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=3, steps=50, stepsize=0.1, initial_const=1.0, abort_early=False
    ).run(
        foolbox.TensorFlowModel(classifier.model, bounds=(0, 1)),
        tf.constant(images),
        tf.constant(labels),
    )
    settings = {"binary_search_steps": 3, "iterations": 50, "initial_constant": 1.0}
    outcome = digits.run(**settings, learning_rate=0.1)
    expected = _distances(images, reference.numpy())
    assert outcome.found.all()
    np.testing.assert_allclose(
        np.median(_distances(images, outcome.images)), np.median(expected), rtol=0.01
    )


def test_an_image_without_an_adversarial_one_comes_back_unchanged_and_marked(binary):
    images = binary.images
    # The second class wins only where the first pixel is dark.
    slopes = np.zeros((64, 2), np.float32)
    slopes[0, 0] = 1.0
    classifier = linear_classifier(slopes, np.array([0.0, 0.1]))
    mask = np.ones_like(images)
    mask[::2, 0, 0] = 0.0
    attack = CarliniWagner(classifier, **THOROUGH)
    outcome = attack.run(images, np.zeros(16, int), mask)
    np.testing.assert_array_equal(outcome.found, np.arange(16) % 2 == 1)
    np.testing.assert_array_equal(outcome.iterations[::2], -1)
    np.testing.assert_array_equal(outcome.zero_gradient, ~outcome.found)
    np.testing.assert_array_equal(outcome.images[::2], images[::2])
    expected = images[1::2, 0, 0, 0] - 0.1
    np.testing.assert_allclose(_distances(images, outcome.images)[1::2], expected, rtol=0.02)


def test_an_image_already_adversarial_comes_back_as_it_is(binary):
    outcome = binary.run(1 - binary.labels, **SHORT)
    np.testing.assert_array_equal(outcome.images, binary.images)
    np.testing.assert_array_equal(outcome.iterations, 0)
    assert outcome.found.all()
    assert outcome.zero_gradient_share == 0.0


def test_a_defence_by_bit_depth_alone_falls(digits):
    """A defence known to be broken validates the attack (Athalye et al. 2018)."""
    _, images, labels = digits
    defended = DefendedModel(digit_model(), None, parse_preprocessor("bit_depth_4"))
    attacked = wrap_classifier(defended, 10, DIGIT_SHAPE, 16)
    outcome = CarliniWagner(attacked, **THOROUGH, learning_rate=0.1).run(images, labels)
    assert outcome.found.all()
    assert (attacked.predict(outcome.images).argmax(axis=1) != labels).all()


def test_each_image_stops_early_by_itself(binary):
    expected = binary.run(**SHORT, abort_early=True).images
    smaller = binary.run(**SHORT, abort_early=True, batch_size=5).images
    np.testing.assert_allclose(smaller, expected, atol=1e-5)
    backwards = binary.attack.generate(binary.images[::-1], binary.labels[::-1])[::-1]
    np.testing.assert_allclose(backwards, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [(PAPER_SETTINGS, (5, 20, 0.1)), (STANDARD_SETTINGS, (9, 1000, 0.001))],
)
def test_published_settings_are_options_of_the_attack(binary, settings, expected):
    attack = CarliniWagner(binary.classifier, **settings)
    assert (attack.binary_search_steps, attack.iterations, attack.initial_constant) == expected


def test_a_longer_search_finds_nothing_further(digits):
    short = digits.run(**SHORT, learning_rate=0.1)
    long = digits.run(**{**SHORT, "binary_search_steps": 6}, learning_rate=0.1)
    assert (long.found >= short.found).all()
    is_found = short.found
    distances, shorter = (_distances(digits.images, o.images)[is_found] for o in (long, short))
    assert (distances <= shorter + 1e-6).all()
