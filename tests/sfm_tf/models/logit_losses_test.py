import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax

from sfm_tf.errors import SfmError
from sfm_tf.models.logit_losses import (
    LOSSES,
    cross_entropy,
    difference_of_logits_ratio,
    margin,
    stable_cross_entropy,
    targeted_difference_of_logits_ratio,
    without_label,
)


def _logits(scale):
    random = np.random.default_rng(0)
    logits = random.normal(scale=scale, size=(50, 4)).astype(np.float32)
    return logits, random.integers(0, 4, 50)


def _confident(margin):
    """Logits whose label leads the next class by `margin`."""
    return np.array([[margin, 0.0, -1.0]], np.float32), np.array([0])


def _gradient(loss, logits, labels):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(logits, tf.constant(labels))
    return tape.gradient(value, logits).numpy()


def _exact_gradient(logits, labels):
    gradient = softmax(logits.astype(np.float64), axis=1)
    rows = np.arange(len(labels))
    gradient[rows, labels] = 0.0
    gradient[rows, labels] = -gradient.sum(axis=1)
    return gradient


CROSS_ENTROPIES = ("cross_entropy", "stable_cross_entropy")


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_is_minus_the_logarithm_of_the_probability(name, scale):
    logits, labels = _logits(scale)
    expected = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(50), labels]
    values = LOSSES[name](tf.constant(logits), tf.constant(labels))
    assert values.dtype == tf.float32
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_gradient_is_softmax_minus_one_hot(name, scale):
    logits, labels = _logits(scale)
    expected = _exact_gradient(logits, labels)
    np.testing.assert_allclose(_gradient(LOSSES[name], logits, labels), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_margins_gradient_is_the_same_at_any_scale(scale):
    logits, labels = _logits(1.0)
    gradient = _gradient(LOSSES["margin"], scale * logits, labels)
    rows = np.arange(50)
    others = np.where(np.eye(4)[labels] == 1, -np.inf, logits).argmax(axis=1)
    expected = np.zeros((50, 4))
    expected[rows, labels], expected[rows, others] = -1.0, 1.0
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("margin", [1.0, 10.0, 17.0, 40.0, 80.0])
def test_stable_gradient_keeps_its_digits(margin):
    logits, labels = _confident(margin)
    gradient = _gradient(stable_cross_entropy, logits, labels)
    np.testing.assert_allclose(gradient, _exact_gradient(logits, labels), rtol=2e-5)


@pytest.mark.parametrize("margin", [18.0, 40.0])
def test_tensorflows_gradient_still_loses_the_label(margin):
    """Pins why there is a stable form: the label's entry is 0 while the others' are not."""
    gradient = _gradient(cross_entropy, *_confident(margin))
    assert gradient[0, 0] == 0.0
    assert gradient[0, 1] > 0.0


def test_stable_form_has_no_undefined_values_at_extreme_logits():
    logits = np.array([[1e30, 0, 0], [0, 1e30, 0], [-1e30, 0, 0]], np.float32)
    labels = np.array([0, 0, 0])
    values = stable_cross_entropy(tf.constant(logits), tf.constant(labels)).numpy()
    np.testing.assert_allclose(values, [0.0, 1e30, 1e30], rtol=1e-6)
    assert np.isfinite(_gradient(stable_cross_entropy, logits, labels)).all()


LOGITS = np.array([[5.0, 1.0, 3.0, -2.0], [5.0, 1.0, 3.0, -2.0], [0.5, 4.0, 4.5, 0.0]], np.float32)
LABELS = np.array([0, 2, 1])
TARGETS = np.array([2, 0, 3])


def _random_logits(count=200):
    random = np.random.default_rng(0)
    logits = random.normal(size=(count, 6)).astype(np.float32)
    return logits, random.integers(0, 6, count), random.integers(0, 6, count)


def test_margin_by_hand():
    values = margin(tf.constant(LOGITS), tf.constant(LABELS))
    np.testing.assert_allclose(values, [5 - 3, 3 - 5, 4 - 4.5])


def test_without_label_leaves_the_others():
    logits = without_label(tf.constant(LOGITS), tf.constant(LABELS)).numpy()
    assert logits.tolist()[1] == [5.0, 1.0, -np.inf, -2.0]


def test_ratios_by_hand():
    """Of the three rows, with a target or without one:

    -(5 - 3) / (5 - 1), -(3 - 5) / (5 - 1) and -(4 - 4.5) / (4.5 - 0.5);
    -(5 - 3) / (5 - (1 - 2) / 2), its negative and -(4 - 0) / (4.5 - (0.5 + 0) / 2).
    """
    logits, labels, targets = (tf.constant(array) for array in (LOGITS, LABELS, TARGETS))
    values = difference_of_logits_ratio(logits, labels)
    np.testing.assert_allclose(values, [-0.5, 0.5, 0.125], rtol=1e-6)
    values = targeted_difference_of_logits_ratio(logits, labels, targets)
    np.testing.assert_allclose(values, [-2 / 5.5, 2 / 5.5, -4 / 4.25], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e6])
def test_neither_ratio_depends_on_scale_or_offset(scale):
    logits, labels, targets = _random_logits()
    other = (scale * (logits.astype(np.float64) + 1.0)).astype(np.float32)
    for loss, arguments in (
        (difference_of_logits_ratio, (labels,)),
        (targeted_difference_of_logits_ratio, (labels, targets)),
    ):
        expected = loss(tf.constant(logits), *map(tf.constant, arguments))
        values = loss(tf.constant(other), *map(tf.constant, arguments))
        np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5)


def test_dlr_equals_its_definition_by_sorting():
    logits, labels, targets = _random_logits()
    ordered = np.sort(logits.astype(np.float64), axis=1)
    rows = np.arange(len(labels))
    others = np.where(np.eye(6, dtype=bool)[labels], -np.inf, logits).max(axis=1)
    plain = -(logits[rows, labels] - others) / (ordered[:, -1] - ordered[:, -3])
    scale = ordered[:, -1] - (ordered[:, -3] + ordered[:, -4]) / 2
    targeted = -(logits[rows, labels] - logits[rows, targets]) / scale
    tensors = tuple(tf.constant(array) for array in (logits, labels, targets))
    np.testing.assert_allclose(difference_of_logits_ratio(*tensors[:2]), plain, rtol=1e-4)
    np.testing.assert_allclose(targeted_difference_of_logits_ratio(*tensors), targeted, rtol=1e-4)


def test_gradient_of_dlr_by_hand():
    """Label 0 of (5, 1, 3, -2): -(z0 - z2) / (z0 - z1), so with a = 2 and b = 4 ...

    dz0: -1/b + a/b^2 = -1/8; dz2: 1/b = 1/4; dz1: -a/b^2 = -1/8.
    """
    gradient = _gradient(difference_of_logits_ratio, LOGITS[:1], LABELS[:1])
    np.testing.assert_allclose(gradient, [[-0.125, -0.125, 0.25, 0]], rtol=1e-6)


def test_equal_logits_have_a_finite_loss():
    logits, labels = tf.zeros((1, 4)), tf.constant([1])
    assert difference_of_logits_ratio(logits, labels).numpy().tolist() == [0.0]
    assert targeted_difference_of_logits_ratio(logits, labels, labels).numpy().tolist() == [0.0]


@pytest.mark.parametrize(
    ("loss", "name", "fewest", "arguments"),
    [
        (difference_of_logits_ratio, "DLR", 3, 1),
        (targeted_difference_of_logits_ratio, "targeted DLR", 4, 2),
    ],
)
def test_too_few_classes_are_refused(loss, name, fewest, arguments):
    labels = [tf.zeros(2, tf.int64)] * arguments
    message = f"{name} loss needs a model of at least {fewest} classes; found {fewest - 1}"
    with pytest.raises(SfmError, match=message):
        loss(tf.zeros((2, fewest - 1)), *labels)
    loss(tf.zeros((2, fewest)), *labels)
