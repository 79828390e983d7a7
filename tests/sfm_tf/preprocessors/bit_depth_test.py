import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.preprocessors.bit_depth import squeeze_bit_depth, squeeze_bit_depth_smoothly


@pytest.mark.parametrize("bits", range(1, 9))
def test_equals_the_formula_in_numpy(bits):
    images = np.random.default_rng(bits).random((4, 9, 7, 3), dtype=np.float32)
    steps = np.float32(2**bits - 1)
    expected = np.rint(images * steps) / steps
    np.testing.assert_array_equal(squeeze_bit_depth(images, bits), expected)


def test_halves_go_to_the_even_level():
    images = tf.constant([0.0, 0.25, 0.5, 0.75, 1.0])
    # 0.5 * 3 = 1.5 is rounded to 2, 0.5 * 1 to 0.
    np.testing.assert_allclose(squeeze_bit_depth(images, 2), [0, 1 / 3, 2 / 3, 2 / 3, 1])
    np.testing.assert_array_equal(squeeze_bit_depth(images, 1), [0, 0, 0, 1, 1])


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_leaves_every_one_of_its_levels_alone(bits):
    levels = np.arange(2**bits, dtype=np.float32) / np.float32(2**bits - 1)
    squeezed = squeeze_bit_depth(np.linspace(0, 1, 5000, dtype=np.float32), bits).numpy()
    np.testing.assert_array_equal(squeeze_bit_depth(levels, bits), levels)
    np.testing.assert_array_equal(np.unique(squeezed), levels)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_smooth_version_meets_the_staircase_at_levels_and_thresholds(bits):
    steps = 2**bits - 1
    points = np.arange(2 * steps + 1) / (2 * steps)
    smooth = squeeze_bit_depth_smoothly(tf.constant(points), bits)
    np.testing.assert_allclose(smooth, points, atol=1e-12)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_smooth_version_is_closer_to_the_staircase_than_the_identity(bits):
    images = np.linspace(0, 1, 4001)
    steps = 2**bits - 1
    staircase = np.rint(images * steps) / steps
    smooth = squeeze_bit_depth_smoothly(tf.constant(images), bits).numpy()
    assert np.abs(smooth - staircase).mean() < 0.85 * np.abs(images - staircase).mean()
    assert smooth.min() >= 0.0
    assert smooth.max() <= 1.0


@pytest.mark.parametrize("bits", [1, 4])
def test_smooth_gradient_is_the_slope_and_never_vanishes(bits):
    images = tf.constant(np.linspace(0, 1, 997))
    with tf.GradientTape() as tape:
        tape.watch(images)
        smooth = squeeze_bit_depth_smoothly(images, bits)
    gradient = tape.gradient(smooth, images).numpy()
    step = 1e-6
    numerical = squeeze_bit_depth_smoothly(images + step, bits) - squeeze_bit_depth_smoothly(
        images - step, bits
    )
    np.testing.assert_allclose(gradient, numerical / (2 * step), atol=1e-6)
    assert gradient.min() >= 0.5
    assert gradient.max() <= 1.5
