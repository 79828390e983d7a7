import itertools

import numpy as np
import pytest
import scipy.ndimage
import sklearn.datasets
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.local_median import (
    _sorting_network,
    filter_local_mean,
    filter_local_median,
)

# Digits have many ties.
DIGITS = (sklearn.datasets.load_digits().images[:20, :, :, np.newaxis] / 16).astype(np.float32)


@pytest.mark.parametrize("window", range(2, 8))
def test_equals_scipy(window):
    # The first images are the smallest that fit.
    shapes = [(2, window // 2, window // 2, 1), (3, 12, 9, 3), (1, 32, 32, 3)]
    random = np.random.default_rng(window)
    for images in (*(random.random(shape, dtype=np.float32) for shape in shapes), DIGITS):
        size = (1, window, window, 1)
        expected = scipy.ndimage.median_filter(images, size=size, mode="reflect")
        np.testing.assert_array_equal(filter_local_median(images, window), expected)


def test_even_window_reaches_up_and_left_and_takes_the_upper_median():
    image = tf.reshape(tf.constant([[0.1, 0.2], [0.3, 0.4]]), [1, 2, 2, 1])
    # Bottom right sees all four values, whose upper median is 0.3; the others see border copies.
    np.testing.assert_allclose(filter_local_median(image, 2)[0, :, :, 0], [[0.1, 0.2], [0.3, 0.3]])


@pytest.mark.parametrize("function", [filter_local_median, filter_local_mean])
def test_rejects_images_smaller_than_the_border(function):
    with pytest.raises(SfmError, match="2x9 pixels are too small for median_7; .* 3x3"):
        function(tf.zeros([1, 2, 9, 1]), 7)


@pytest.mark.parametrize("count", range(2, 13))
def test_sorting_network_sorts_all_zeros_and_ones(count):
    # A network of exchanges that sorts these sorts everything (Knuth 5.3.4, theorem Z).
    wires = np.array(list(itertools.product((0, 1), repeat=count))).T
    for lower, upper in _sorting_network(count):
        pair = wires[lower].copy(), wires[upper].copy()
        wires[lower], wires[upper] = np.minimum(*pair), np.maximum(*pair)
    assert (np.diff(wires, axis=0) >= 0).all()


@pytest.mark.parametrize("window", [2, 3, 5])
def test_mean_equals_scipy_uniform_filter(window):
    images = np.random.default_rng(window).random((2, 10, 8, 3), dtype=np.float32)
    # For even sizes scipy's window, too, reaches further up and left.
    expected = scipy.ndimage.uniform_filter(images, size=(1, window, window, 1), mode="reflect")
    np.testing.assert_allclose(filter_local_mean(images, window), expected, atol=1e-6)


@pytest.mark.parametrize("window", [2, 3])
def test_gradient_of_the_mean_is_its_numerical_derivative(window):
    images = tf.constant(np.random.default_rng(0).random((1, 4, 4, 1)))
    theoretical, numerical = tf.test.compute_gradient(
        lambda values: filter_local_mean(values, window), [images]
    )
    np.testing.assert_allclose(theoretical[0], numerical[0], atol=1e-6)
    assert (theoretical[0].sum(axis=0) > 0).all()
