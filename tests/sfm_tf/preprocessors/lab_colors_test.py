import cv2
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.preprocessors.lab_colors import (
    decode_lab,
    decode_lab_8_bit,
    encode_lab,
    encode_lab_8_bit,
)

# OpenCV's units for float images, L in [0, 100] and signed chroma, in those of its 8-bit images.
SCALE, OFFSET = np.array([255 / 100, 1, 1]), np.array([0, 128, 128])


def _every_color(step):
    """All 8-bit colours of which the first two channels are multiples of `step`, and 255."""
    levels = np.append(np.arange(0, 255, step), 255)
    grid = np.meshgrid(levels, levels, np.arange(256), indexing="ij")
    return np.stack(grid, axis=-1).astype(np.uint8).reshape(len(levels), -1, 3)


@pytest.mark.parametrize("step", [3, 5])
def test_encodes_8_bit_colors_bit_for_bit_like_opencv(step):
    colors = _every_color(step)
    lab = encode_lab_8_bit(tf.constant(colors, tf.float64))
    np.testing.assert_array_equal(lab, cv2.cvtColor(colors, cv2.COLOR_LRGB2Lab))


@pytest.mark.parametrize("step", [3, 5])
def test_decodes_8_bit_colors_bit_for_bit_like_opencv(step):
    lab = _every_color(step)
    colors = decode_lab_8_bit(tf.constant(lab, tf.float64))
    np.testing.assert_array_equal(colors, cv2.cvtColor(lab, cv2.COLOR_Lab2LRGB))


def test_real_encoding_agrees_with_opencv_on_floats():
    colors = _every_color(15)
    expected = cv2.cvtColor((colors / 255).astype(np.float32), cv2.COLOR_LRGB2Lab)
    lab = encode_lab(tf.constant(colors, tf.float32))
    # OpenCV interpolates the cube root from a table of 1024 steps.
    np.testing.assert_allclose(lab, expected * SCALE + OFFSET, atol=0.02)


def test_real_decoding_inverts_the_encoding():
    # The two matrices are printed with six digits.
    colors = _every_color(15).astype(np.float64)
    np.testing.assert_allclose(decode_lab(encode_lab(tf.constant(colors))), colors, atol=1e-3)


@pytest.mark.parametrize("function", [encode_lab, decode_lab])
def test_gradient_is_the_numerical_derivative(function):
    colors = np.random.default_rng(0).uniform(0, 255, (4, 3))
    colors[0] = [0, 1, 2]
    theoretical, numerical = tf.test.compute_gradient(function, [tf.constant(colors)])
    np.testing.assert_allclose(theoretical[0], numerical[0], rtol=1e-3, atol=1e-3)


def test_gradient_at_black_is_finite():
    black = tf.zeros([1, 3])
    with tf.GradientTape() as tape:
        tape.watch(black)
        lab = encode_lab(black)
    assert np.isfinite(tape.gradient(lab, black)).all()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
