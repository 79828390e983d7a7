import cv2
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.preprocessors.total_variation import (
    minimise_total_variation,
    minimise_total_variation_smoothly,
)

FUNCTIONS = [minimise_total_variation, minimise_total_variation_smoothly]


def _smooth_images(batch, size, channels):
    noise = np.random.default_rng(size).random((batch, size, size, channels))
    blurred = [cv2.GaussianBlur(image, (0, 0), 3.0) for image in noise]
    blurred = np.reshape(blurred, noise.shape)
    low, high = blurred.min(), blurred.max()
    return ((blurred - low) / (high - low)).astype(np.float32)


def _seeds(batch):
    return np.random.default_rng(7).integers(0, 2**31 - 1, (batch, 2)).astype(np.int32)


def _kept(images, seeds, percent):
    draws = [tf.random.stateless_uniform(images.shape[1:], seed).numpy() for seed in seeds]
    return np.stack(draws) >= percent / 100


def _graph(function, shape, *parameters):
    signature = [tf.TensorSpec([None, *shape[1:]]), tf.TensorSpec([None, 2], tf.int32)]
    return tf.function(lambda *inputs: function(*inputs, *parameters), input_signature=signature)


def _error(images, expected):
    return np.sqrt(np.mean((images - expected) ** 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32])
def test_paints_what_was_dropped(channels, size):
    images, seeds = _smooth_images(4, size, channels), _seeds(4)
    painted = minimise_total_variation(images, seeds, 50, 30).numpy()
    dropped = ~_kept(images, seeds, 50)
    assert 0.4 < dropped.mean() < 0.6
    assert _error(painted, images) < 0.3 * _error(np.where(dropped, 0.0, images), images)
    assert _error(painted[dropped], images[dropped]) < 0.1


def test_removes_noise():
    images, seeds = _smooth_images(4, 32, 3), _seeds(4)
    noise = np.random.default_rng(1).normal(0.0, 0.1, images.shape)
    noisy = np.clip(images + noise, 0.0, 1.0).astype(np.float32)
    painted = minimise_total_variation(noisy, seeds, 50, 30).numpy()
    assert _error(painted, images) < 0.7 * _error(noisy, images)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_of_each_channel_are_dropped_independently(function):
    images, seeds = _smooth_images(2, 8, 3), _seeds(2)
    with tf.GradientTape() as tape:
        variable = tf.Variable(images)
        smooth = minimise_total_variation_smoothly(variable, seeds, 50, 30)
    reached = np.asarray(tape.gradient(smooth, variable)) != 0.0
    np.testing.assert_array_equal(reached, _kept(images, seeds, 50))
    assert (reached.any(axis=-1) & ~reached.all(axis=-1)).any()
    changed = np.where(reached, images, 1.0 - images)
    results = (function(values, seeds, 50, 30) for values in (changed, images))
    np.testing.assert_allclose(*results, atol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_black_is_dropped_as_often_as_other_values(function):
    images, seeds = np.zeros((1, 8, 8, 1), np.float32), _seeds(1)
    images[:, 2:6, 2:6] = 1.0
    without = function(np.where(_kept(images, seeds, 50), images, 1.0), seeds, 50, 30)
    np.testing.assert_allclose(function(images, seeds, 50, 30), without, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "channels", "tolerance"),
    [(FUNCTIONS[0], 1, 0.0), (FUNCTIONS[0], 3, 0.0), (FUNCTIONS[1], 3, 1e-5)],
)
def test_result_does_not_depend_on_the_rest_of_the_batch(function, channels, tolerance):
    # Large enough that TensorFlow splits a batch among its threads, at a place that depends on it.
    images, seeds = _smooth_images(20, 32, channels), _seeds(20)
    images[5] = np.random.default_rng(0).random(images[5].shape)
    graph = _graph(function, images.shape, 50, 30)
    together = graph(images, seeds).numpy()
    for part in (slice(0, 1), slice(3, 6), slice(19, 3, -1), slice(0, 0)):
        alone = graph(images[part], seeds[part])
        np.testing.assert_allclose(alone, together[part], rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_seeds_drop_others(function):
    images = np.repeat(_smooth_images(1, 16, 3), 2, axis=0)
    first, second = function(images, _seeds(2), 50, 30).numpy()
    assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_empty_batch_stays_empty(function, channels):
    shape = (0, 8, 8, channels)
    assert function(tf.zeros(shape), tf.zeros([0, 2], tf.int32), 50, 30).shape == shape


@pytest.mark.parametrize(("percent", "thousandths"), [(0, 1000), (99, 1)])
def test_extreme_parameters_give_images(percent, thousandths):
    images = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)
    parameters = (percent, thousandths)
    solve = _graph(minimise_total_variation, images.shape, *parameters)
    smooth = minimise_total_variation_smoothly(images, _seeds(2), *parameters)
    for painted in (solve(images, _seeds(2)).numpy(), smooth.numpy()):
        assert painted.dtype == np.float32
        assert np.isfinite(painted).all()
        assert painted.min() >= 0.0
        assert painted.max() <= 1.0 + 1e-6


@pytest.mark.parametrize("percent", [0, 50])
@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_version_is_near_the_solution(channels, percent):
    images, seeds = _smooth_images(4, 32, channels), _seeds(4)
    arguments = (images, seeds, percent, 30)
    painted = minimise_total_variation(*arguments).numpy()
    smooth = minimise_total_variation_smoothly(*arguments).numpy()
    assert _error(smooth, painted) < 0.5 * _error(painted, images)


def test_smooth_gradient_is_the_numerical_derivative_and_reaches_neighbours():
    images = tf.constant(_smooth_images(1, 8, 1), tf.float64)
    direction = np.random.default_rng(0).standard_normal(images.shape)

    def center(step):
        moved = tf.cast(images + step * direction, tf.float32)
        return minimise_total_variation_smoothly(moved, _seeds(1), 50, 30)[0, 4, 4, 0]

    with tf.GradientTape() as tape:
        step = tf.Variable(0.0, dtype=tf.float64)
        value = center(step)
    numerical = (center(1e-2) - center(-1e-2)) / 2e-2
    np.testing.assert_allclose(tape.gradient(value, step), numerical, rtol=0.05)


def test_saved_model_gives_the_same_values(tmp_path):
    module = tf.Module()
    module.serve = _graph(minimise_total_variation, (None, 32, 32, 3), 50, 30)
    tf.saved_model.save(module, str(tmp_path / "model"))
    restored = tf.saved_model.load(str(tmp_path / "model"))
    for batch in (0, 1, 5):
        images, seeds = _smooth_images(5, 32, 3)[:batch], _seeds(batch)
        np.testing.assert_array_equal(restored.serve(images, seeds), module.serve(images, seeds))


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
