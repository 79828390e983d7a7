"""Tests of the inner maximisation against the linear model, whose worst case is known."""

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.training.inner_attack import adversarial_images

_EPSILON = 0.1


def _images(low=0.2, high=0.8, count=5):
    generator = np.random.default_rng(0)
    return tf.constant(generator.uniform(low, high, (count, 4, 3, 2)), tf.float32)


def _weights():
    return tf.constant(np.random.default_rng(1).normal(size=(4, 3, 2)), tf.float32)


def _linear(images):
    return tf.reduce_sum(_weights() * images, axis=(1, 2, 3))


def _bent(images):
    """A measure whose gradient turns inside the ball: steps overshoot its maximum."""
    return tf.reduce_sum(tf.sin(12.0 * _weights() * images), axis=(1, 2, 3))


def _attack(images, measure=_linear, step_size=0.05, iterations=5, seed=(3, 4)):
    return adversarial_images(images, measure, _EPSILON, step_size, iterations, tf.constant(seed))


def test_reaches_the_corner_that_is_worst_for_a_linear_model():
    images = _images()
    expected = images + _EPSILON * np.sign(_weights())
    np.testing.assert_allclose(_attack(images), expected, atol=1e-6)


@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("measure", [_linear, _bent])
def test_stays_in_the_ball_and_in_the_range_of_images(measure, iterations):
    images = _images(low=0.0, high=1.0)
    attacked = _attack(images, measure, step_size=0.08, iterations=iterations).numpy()
    assert np.abs(attacked - images).max() <= _EPSILON + 1e-6
    assert attacked.min() >= 0.0
    assert attacked.max() <= 1.0


def test_start_is_uniform_in_the_ball():
    images = tf.fill((50, 4, 3, 2), 0.5)
    noise = (_attack(images, iterations=0) - images).numpy().ravel()
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert noise.std() == pytest.approx(_EPSILON / np.sqrt(3), rel=0.05)
    assert np.abs(noise).max() > 0.99 * _EPSILON


@pytest.mark.parametrize("measure", [_linear, _bent])
def test_loss_is_no_smaller_than_at_the_start(measure):
    images = _images()
    start = _attack(images, measure, iterations=0)
    attacked = _attack(images, measure, step_size=0.01, iterations=10)
    assert np.all(measure(attacked).numpy() >= measure(start).numpy())


def test_depends_on_the_seed_alone():
    images = _images()
    first, again, other = (
        _attack(images, iterations=1, step_size=0.02, seed=seed).numpy()
        for seed in ((3, 4), (3, 4), (3, 5))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_is_the_same_inside_a_graph_for_batches_of_any_size():
    @tf.function(input_signature=[tf.TensorSpec((None, 4, 3, 2))])
    def attack(images):
        return _attack(images, _bent)

    for count in (1, 5):
        images = _images(count=count)
        np.testing.assert_allclose(attack(images), _attack(images, _bent), atol=1e-6)
    assert attack.get_concrete_function().output_shapes == (None, 4, 3, 2)


def test_no_gradient_flows_back_through_the_attack():
    images = _images()
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(_attack(images))
    assert tape.gradient(loss, images) is None


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
