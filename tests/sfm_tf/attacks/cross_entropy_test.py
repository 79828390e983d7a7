import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax

from sfm_tf.attacks.cross_entropy import LOSSES, cross_entropy, stable_cross_entropy


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


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_is_minus_the_logarithm_of_the_probability(name, scale):
    logits, labels = _logits(scale)
    expected = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(50), labels]
    values = LOSSES[name](tf.constant(logits), tf.constant(labels))
    assert values.dtype == tf.float32
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_is_softmax_minus_one_hot(name, scale):
    logits, labels = _logits(scale)
    expected = _exact_gradient(logits, labels)
    np.testing.assert_allclose(_gradient(LOSSES[name], logits, labels), expected, atol=1e-6)


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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
