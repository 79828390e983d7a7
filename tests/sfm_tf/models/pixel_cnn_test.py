"""Tests of the PixelCNN: what each pixel's distribution depends on, and what it is made of."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.models.pixel_cnn import build_pixel_cnn


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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
