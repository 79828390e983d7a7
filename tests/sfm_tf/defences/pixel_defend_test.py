"""Tests of PixelDefend by enumeration, and of what it must leave alone."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.defences.pixel_defend import pixel_defend_operation, purify_smoothly
from sfm_tf.errors import SfmError
from sfm_tf.models.pixel_cnn import (
    build_pixel_cnn,
    expected_images,
    pixel_log_probabilities,
    split_parameters,
)
from sfm_tf.preprocessors.bpda import with_surrogate_gradient


@functools.cache
def _model(image_shape, seed=0):
    """A model of distributions that are sharp and differ from pixel to pixel."""
    model = build_pixel_cnn(image_shape, width=6, depth=1, mixtures=2, seed=seed)
    channels = image_shape[-1]
    bias = np.zeros((model.output.shape[-1] // 2, 2), np.float32)
    bias[1 + channels : 1 + 2 * channels] = -2.0  # Log scales.
    model.get_layer("parameters").bias.assign(bias.ravel())
    return model


@functools.cache
def _operation(image_shape):
    return pixel_defend_operation(_model(image_shape))


def _images(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def _levels(images):
    return np.rint(np.asarray(images) * 255).astype(int)


def _probabilities_so_far(model, candidates, row, column, channel):
    """P of a pixel's channels up to `channel`, those after it summed over all their levels.

    The whole network sees each candidate image.
    """
    parameters = model(candidates / np.float32(255))[:, np.newaxis, row, column]
    known = candidates[:, row, column, : channel + 1].astype(np.float32)
    later = [np.arange(256.0, dtype=np.float32)] * (candidates.shape[-1] - channel - 1)
    outcomes = [
        np.stack(np.meshgrid(*pixel[:, np.newaxis], *later), axis=-1).reshape(
            -1, candidates.shape[-1]
        )
        for pixel in known
    ]
    mixture = split_parameters(parameters, candidates.shape[-1])
    logs = pixel_log_probabilities(mixture, tf.constant(np.stack(outcomes))).numpy()
    return np.exp(logs.astype(np.float64)).sum(axis=-1)


@pytest.mark.parametrize(("channels", "epsilon"), [(1, 30), (3, 3)])
def test_each_choice_on_two_by_two_pixels_is_the_best_of_all_candidates(channels, epsilon):
    model, operation = _model((2, 2, channels)), _operation((2, 2, channels))
    # Near what is likely, the best is often neither the lowest nor the highest candidate.
    likely = operation.forward(tf.fill([1, 2, 2, channels], 0.5), 255)
    noise = np.random.default_rng(0).integers(-2, 3, likely.shape)
    images = np.clip(likely + noise / 255, 0, 1).astype(np.float32)
    purified, current = _levels(operation.forward(images, epsilon))[0], _levels(images)[0]
    chosen_inside = 0
    for row, column, channel in np.ndindex(current.shape):
        value = current[row, column, channel]
        levels = np.arange(max(value - epsilon, 0), min(value + epsilon, 255) + 1)
        candidates = np.repeat(current[np.newaxis], len(levels), axis=0)
        candidates[:, row, column, channel] = levels
        probabilities = _probabilities_so_far(model, candidates, row, column, channel)
        chosen = purified[row, column, channel]
        assert chosen in levels
        assert probabilities[chosen - levels[0]] >= probabilities.max() * (1 - 1e-5)
        chosen_inside += levels[0] < chosen < levels[-1]
        current[row, column, channel] = chosen
    assert chosen_inside > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_epsilon_of_zero_clips_and_rounds_only(channels):
    images = 1.5 * _images((3, 4, 4, channels)) - 0.25
    purified = _operation((4, 4, channels)).forward(images, 0)
    np.testing.assert_allclose(purified, np.rint(np.clip(images, 0, 1) * 255) / 255, atol=1e-7)


@pytest.mark.parametrize("epsilon", [1, 16, 255])
def test_stays_within_epsilon_and_the_range(epsilon):
    images = _images((3, 4, 4, 3))
    purified = _operation((4, 4, 3)).forward(images, epsilon)
    assert purified.dtype == tf.float32
    assert 0 < np.abs(_levels(purified) - _levels(images)).max() <= epsilon
    assert np.min(purified) >= 0
    assert np.max(purified) <= 1
    np.testing.assert_allclose(_levels(purified) / 255, purified, atol=1e-7)


def test_likelihood_rises():
    model, images = _model((4, 4, 1)), _images((4, 4, 4, 1))

    def likelihood(epsilon):
        purified = _operation((4, 4, 1)).forward(images, epsilon)
        mixture = split_parameters(model(purified), 1)
        levels = tf.constant(_levels(purified), tf.float32)
        return np.mean(pixel_log_probabilities(mixture, levels))

    assert likelihood(16) > likelihood(0) + 0.05


def test_no_image_bears_on_another():
    operation, images = _operation((4, 4, 3)), _images((5, 4, 4, 3))
    together = operation.forward(images, 16)
    for index in range(5):
        alone = operation.forward(images[index : index + 1], 16)
        np.testing.assert_array_equal(alone[0], together[index])
    assert operation.forward(images[:0], 16).shape == (0, 4, 4, 3)


def test_is_the_same_from_a_saved_model_of_any_batch_with_a_model_from_a_file(tmp_path):
    images = _images((3, 4, 4, 3))
    _model((4, 4, 3)).save(tmp_path / "pixel_cnn.keras")
    model = keras.saving.load_model(tmp_path / "pixel_cnn.keras", safe_mode=True)
    module = tf.Module()
    module.purify = tf.function(
        lambda images: pixel_defend_operation(model).forward(images, 16),
        input_signature=[tf.TensorSpec([None, 4, 4, 3], tf.float32)],
    )
    tf.saved_model.save(module, tmp_path / "purifier")
    loaded = tf.saved_model.load(tmp_path / "purifier")
    expected = _levels(_operation((4, 4, 3)).forward(images, 16))
    np.testing.assert_array_equal(_levels(loaded.purify(images)), expected)
    assert loaded.purify(images[:0]).shape == (0, 4, 4, 3)


def test_smooth_version_is_the_mean_where_that_is_near_and_the_bound_where_it_is_far():
    model, images = _model((4, 4, 3)), tf.constant(_images((2, 4, 4, 3)))
    mean = expected_images(images, model(images)).numpy()
    far = purify_smoothly(images, 1, model) - images
    np.testing.assert_allclose(
        far[np.abs(mean - images) > 0.05],
        np.sign(mean - images)[np.abs(mean - images) > 0.05] / 255,
        rtol=1e-3,
    )
    nearest = np.abs(mean - images) < 0.1
    near = purify_smoothly(images, 255, model).numpy()
    np.testing.assert_allclose(near[nearest], mean[nearest], atol=4e-4)
    np.testing.assert_array_equal(purify_smoothly(images, 0, model), images)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("surrogate", ["identity", "smooth"])
def test_gradient_is_that_of_the_stand_in(surrogate, in_graph):
    operation, images = _operation((4, 4, 1)), tf.constant(_images((2, 4, 4, 1)))
    stand_in = {"identity": tf.identity, "smooth": lambda images: operation.smooth(images, 16)}
    function = with_surrogate_gradient(
        lambda images: operation.forward(images, 16), stand_in[surrogate]
    )

    def differentiate(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            values = tf.reduce_sum(tf.square(function(images)))
        return tape.gradient(values, images)

    computed = (tf.function(differentiate) if in_graph else differentiate)(images)
    upstream = 2 * operation.forward(images, 16)
    with tf.GradientTape() as tape:
        tape.watch(images)
        stand_in_values = stand_in[surrogate](images)
    expected = tape.gradient(stand_in_values, images, output_gradients=upstream)
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-6)
    assert np.isfinite(computed).all()


def test_smooth_gradient_is_the_numerical_derivative():
    model, images = _model((3, 3, 3)), _images((1, 3, 3, 3))
    direction = np.random.default_rng(1).normal(size=images.shape).astype(np.float32)
    with tf.GradientTape() as tape:
        inputs = tf.constant(images)
        tape.watch(inputs)
        total = tf.reduce_sum(purify_smoothly(inputs, 32, model) * direction[..., ::-1])
    slope = np.sum(tape.gradient(total, inputs) * direction)
    ahead, behind = (
        np.sum(purify_smoothly(images + step * direction, 32, model) * direction[..., ::-1])
        for step in (1e-3, -1e-3)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-3, rtol=0.02)


def test_operation_says_what_it_takes_and_what_was_fitted():
    operation = _operation((4, 4, 1))
    assert operation.form("pixel_defend") == "pixel_defend_EPSILON"
    assert operation.allows([0])
    assert operation.allows([255])
    assert not operation.allows([256])
    assert not operation.is_random
    assert operation.content == pixel_defend_operation(_model((4, 4, 1))).content
    assert operation.content != pixel_defend_operation(_model((4, 4, 1), seed=1)).content


def test_rejects_images_of_another_shape():
    with pytest.raises(SfmError, match=r"shape \(8, 8, 1\); .* made for \(4, 4, 1\)"):
        _operation((4, 4, 1)).forward(_images((2, 8, 8, 1)), 16)


def test_rejects_another_model():
    inputs = keras.Input((4, 4, 1))
    with pytest.raises(SfmError, match="is no PixelCNN"):
        pixel_defend_operation(keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs)))
