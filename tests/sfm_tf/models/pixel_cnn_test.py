"""Tests of the PixelCNN: what each pixel's distribution depends on, and what it is made of."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.pixel_cnn import (
    bits_per_dimension,
    build_pixel_cnn,
    component_log_probabilities,
    count_parameters,
    expected_images,
    pixel_log_probabilities,
    split_parameters,
)

_MIXTURES = 3
_SHAPE = (2, 3, 4)


def _parameters(channels, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(*_SHAPE, count_parameters(channels, _MIXTURES)))


def _levels(channels, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (*_SHAPE, channels)).astype(np.float64)


def _mass(level, mean, scale):
    """Probability of levels, straight from the definition."""
    lower = np.where(level == 0, -np.inf, (2 * level - 1) / 255 - 1)
    upper = np.where(level == 255, np.inf, (2 * level + 1) / 255 - 1)
    distribution = scipy.stats.logistic(mean, scale)
    return distribution.cdf(upper) - distribution.cdf(lower)


def _component_masses(parameters, levels):
    """Weight times probabilities of the channels, `(channels + 1, ..., components)`, by NumPy."""
    channels = levels.shape[-1]
    kinds = parameters.reshape(*_SHAPE, -1, _MIXTURES)
    weights = scipy.special.softmax(kinds[..., 0, :], axis=-1)
    means = kinds[..., 1 : 1 + channels, :]
    scales = np.exp(kinds[..., 1 + channels : 1 + 2 * channels, :])
    tanh = np.tanh(kinds[..., 1 + 2 * channels :, :])
    x = (levels * 2 / 255 - 1)[..., np.newaxis]
    shifted = [means[..., 0, :]]
    if channels == 3:
        shifted.append(means[..., 1, :] + tanh[..., 0, :] * x[..., 0, :])
        shifted.append(
            means[..., 2, :] + tanh[..., 1, :] * x[..., 0, :] + tanh[..., 2, :] * x[..., 1, :]
        )
    masses = [
        _mass(levels[..., channel, np.newaxis], shifted[channel], scales[..., channel, :])
        for channel in range(channels)
    ]
    return weights, np.stack(masses), np.stack(shifted)


def test_counts_of_parameters_are_those_of_the_publication():
    assert count_parameters(3, 10) == 100
    assert count_parameters(1, 10) == 30


@pytest.mark.parametrize("channels", [1, 3])
def test_joint_probability_and_bits_per_dimension_are_those_of_scipy(channels):
    parameters, levels = _parameters(channels), _levels(channels)
    levels[0, 0] = 0
    levels[0, 1] = 255
    weights, masses, _ = _component_masses(parameters, levels)
    expected = np.log((weights * masses.prod(axis=0)).sum(axis=-1))
    mixture = split_parameters(tf.constant(parameters), channels)
    computed = pixel_log_probabilities(mixture, tf.constant(levels))
    np.testing.assert_allclose(computed, expected, rtol=1e-9)
    images, parameters = (tf.constant(a, tf.float32) for a in (levels / 255, parameters))
    bits = bits_per_dimension(images, parameters)
    assert bits.dtype == tf.float32
    nats = expected.mean(axis=(1, 2))
    np.testing.assert_allclose(bits, -nats / np.log(2) / channels, rtol=1e-5)


def test_probabilities_of_all_levels_sum_to_one():
    mixture = split_parameters(tf.constant(_parameters(1)), 1)
    levels = tf.constant(np.tile(np.arange(256.0)[:, None, None, None, None], (1, *_SHAPE, 1)))
    probabilities = tf.exp(pixel_log_probabilities(mixture, levels))
    np.testing.assert_allclose(tf.reduce_sum(probabilities, axis=0), np.ones(_SHAPE), rtol=1e-12)


def test_expectation_is_that_of_the_components_given_the_earlier_channels():
    parameters, levels = _parameters(3), _levels(3)
    weights, masses, means = _component_masses(parameters, levels)
    expected = []
    for channel in range(3):
        posterior = weights * masses[:channel].prod(axis=0)
        posterior /= posterior.sum(axis=-1, keepdims=True)
        expected.append(((posterior * means[channel]).sum(axis=-1) + 1) / 2)
    computed = expected_images(tf.constant(levels / 255), tf.constant(parameters))
    np.testing.assert_allclose(computed, np.stack(expected, axis=-1), rtol=1e-9)


def test_far_tails_have_the_probability_of_the_closed_form():
    # Level 200 is 400/255 above a mean of -1, or 1,720 scales: sigmoid(a) - sigmoid(b) underflows.
    mixture = split_parameters(tf.constant([[0.0, -1.0, -7.0]]), 1)
    levels = tf.constant([[200.0]])
    computed = component_log_probabilities(mixture, 0, levels[:, :0], levels)[0, 0, 0]
    inverse_scale = np.exp(7.0)
    closed_form = -399 / 255 * inverse_scale + np.log1p(-np.exp(-2 / 255 * inverse_scale))
    np.testing.assert_allclose(computed, closed_form, rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 1.0, 254.0, 255.0])
@pytest.mark.parametrize("log_scale", [-30.0, -7.0, 0.0, 7.0])
@pytest.mark.parametrize("mean", [-30.0, 0.0, 30.0])
def test_gradient_is_finite_for_extreme_parameters(level, log_scale, mean):
    parameters = tf.constant([[[[0.0, 1.0, mean, 0.0, log_scale, 0.0]]]])
    images = tf.fill([1, 1, 1, 1], level / 255)
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        bits = bits_per_dimension(images, parameters)
    assert np.isfinite(bits).all()
    assert np.isfinite(tape.gradient(bits, parameters)).all()


def test_log_scales_are_cut_off_at_minus_seven():
    mixture = split_parameters(tf.constant([[0.0, 0.0, -9.0]]), 1)
    np.testing.assert_array_equal(mixture.log_scales, [[[-7.0]]])


def test_rejects_parameters_of_another_number_of_channels():
    with pytest.raises(SfmError, match="count 15 of .* 3 channels; expected a multiple of 10"):
        split_parameters(tf.zeros([2, 15]), 3)


def _images(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_changes_nothing_at_or_before_itself(channels):
    model = build_pixel_cnn((4, 5, channels), width=4, depth=2, mixtures=2, seed=0)
    images = _images((1, 4, 5, channels))
    original = model(images).numpy().reshape(20, -1)
    changed_images = np.repeat(images, 20, axis=0)
    for pixel in range(20):
        changed_images[pixel, pixel // 5, pixel % 5] += 0.3
    changed = model(changed_images).numpy().reshape(20, 20, -1)
    for pixel in range(20):
        # Convolutions of another batch size may add in another order.
        np.testing.assert_allclose(
            changed[pixel, : pixel + 1], original[: pixel + 1], rtol=1e-5, atol=1e-6
        )
        if pixel % 5 < 4:
            assert np.abs(changed[pixel, pixel + 1] - original[pixel + 1]).max() > 1e-3


@pytest.mark.parametrize("pixel", [0, 1, 7, 12, 19, 24])
def test_gradient_reaches_all_earlier_pixels_and_no_other(pixel):
    model = build_pixel_cnn((5, 5, 1), width=8, depth=3, mixtures=2, seed=1)
    images = tf.constant(_images((1, 5, 5, 1)))
    with tf.GradientTape() as tape:
        tape.watch(images)
        squares = tf.square(model(images)[:, pixel // 5, pixel % 5])
    gradient = tape.gradient(squares, images)
    gradient = np.zeros(25) if gradient is None else np.ravel(gradient)
    np.testing.assert_array_equal(gradient != 0, np.arange(25) < pixel)


def test_grey_is_not_taken_for_the_border():
    model = build_pixel_cnn((5, 5, 1), width=4, depth=1, mixtures=2, seed=0)
    parameters = model(np.full((1, 5, 5, 1), 0.5, np.float32)).numpy()
    assert np.abs(parameters[0, 0, 0] - parameters[0, 4, 2]).max() > 1e-3


@pytest.mark.parametrize(("channels", "parameters"), [(1, 3), (3, 10)])
def test_has_as_many_weights_as_its_layers_add_up_to(channels, parameters):
    width, depth, mixtures = 6, 2, 4
    model = build_pixel_cnn((8, 8, channels), width, depth, mixtures)
    seen, both = channels + 1, 2 * width
    inputs = (6 + 3 + 2) * seen * width + 3 * width
    down = 6 * both * width + width + 6 * both * 2 * width + 2 * width
    right = 4 * both * width + width + 4 * both * 2 * width + 2 * width + both * width + width
    outputs = (width + 1) * parameters * mixtures
    assert model.count_params() == inputs + depth * (down + right) + outputs
    assert model.output.shape == (None, 8, 8, parameters * mixtures)


def test_seed_alone_decides_the_initial_weights():
    first, second, other = (
        build_pixel_cnn((8, 8, 1), 4, 1, 2, seed=seed).get_weights() for seed in (5, 5, 6)
    )
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(first, other, strict=True))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_answers_in_float32_under_any_policy(policy):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build_pixel_cnn((8, 8, 3), 4, 1, 2)
    finally:
        keras.config.set_dtype_policy(previous)
    assert model(_images((2, 8, 8, 3))).dtype == tf.float32
    assert model.get_layer("down1_first").compute_dtype == policy.removeprefix("mixed_")


def test_survives_saving_and_loading_in_safe_mode(tmp_path):
    model = build_pixel_cnn((4, 6, 3), 4, 2, 2)
    model.save(tmp_path / "pixel_cnn.keras")
    loaded = keras.saving.load_model(tmp_path / "pixel_cnn.keras", safe_mode=True)
    images = _images((2, 4, 6, 3))
    np.testing.assert_array_equal(loaded(images), model(images))


def test_takes_images_of_a_single_pixel():
    model = build_pixel_cnn((1, 1, 1), 4, 1, 2)
    np.testing.assert_array_equal(*model(np.array([[[[0.0]]], [[[1.0]]]], np.float32)))
