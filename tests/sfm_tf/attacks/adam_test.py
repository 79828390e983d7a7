import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.adam import adam_step, initial_moments


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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
