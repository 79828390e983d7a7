import cv2
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.non_local_means import (
    average_similar_pixels,
    decode_lab,
    decode_lab_8_bit,
    denoise_non_local_means,
    denoise_non_local_means_smoothly,
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


@pytest.mark.parametrize(
    ("function", "code"),
    [(encode_lab_8_bit, cv2.COLOR_LRGB2Lab), (decode_lab_8_bit, cv2.COLOR_Lab2LRGB)],
)
def test_converts_8_bit_colors_bit_for_bit_like_opencv(function, code):
    colors = _every_color(3)
    converted = function(tf.constant(colors, tf.float64))
    np.testing.assert_array_equal(converted, cv2.cvtColor(colors, code))


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


def _similarity(sums):
    return tf.exp(sums / -2.0)


def _average_by_definition(channels, search_window, template_window):
    """One pixel of one image at a time, as the formula is written."""
    search, template = search_window // 2, template_window // 2
    border = search + template
    margins = [(border, border), (border, border), (0, 0)]
    averages = np.zeros_like(channels)
    for image, average in zip(channels, averages, strict=True):
        padded = np.pad(image, margins, mode="reflect")

        def patch(row, column, padded=padded):
            rows = slice(row - template, row + template + 1)
            return padded[rows, column - template : column + template + 1]

        for row, column in np.ndindex(*image.shape[:2]):
            here = row + border, column + border
            total = 0.0
            for down, right in np.ndindex(search_window, search_window):
                there = here[0] + down - search, here[1] + right - search
                weight = np.exp(-np.square(patch(*here) - patch(*there)).sum() / 2.0)
                average[row, column] += weight * padded[there]
                total += weight
            average[row, column] /= total
    return averages


@pytest.mark.parametrize(
    ("shape", "search_window", "template_window"),
    [((2, 6, 5, 1), 5, 3), ((1, 5, 7, 2), 3, 1), ((1, 3, 4, 2), 7, 5), ((1, 1, 1, 1), 3, 3)],
)
def test_equals_the_definition_pixel_by_pixel(shape, search_window, template_window):
    channels = np.random.default_rng(0).random(shape)
    expected = _average_by_definition(channels, search_window, template_window)
    averages = average_similar_pixels(
        tf.constant(channels), search_window, template_window, _similarity
    )
    np.testing.assert_allclose(averages, expected, rtol=1e-12)


def test_similarity_averages_gradient_is_the_numerical_derivative():
    channels = tf.constant(np.random.default_rng(1).random((2, 4, 3, 2)))
    compiled = tf.function(lambda values: average_similar_pixels(values, 3, 3, _similarity))
    theoretical, numerical = tf.test.compute_gradient(compiled, [channels])
    np.testing.assert_allclose(theoretical[0], numerical[0], atol=1e-6)


def test_equal_weights_give_the_mean_of_the_search_window():
    channels = np.zeros((1, 7, 7, 1))
    channels[0, 3, 3, 0] = 9.0
    averages = average_similar_pixels(tf.constant(channels), 3, 1, tf.ones_like)
    expected = np.zeros((7, 7))
    expected[2:5, 2:5] = 1.0
    np.testing.assert_allclose(averages[0, :, :, 0], expected)


def test_graph_does_not_grow_with_the_search_window():
    def count_operations(search_window):
        function = tf.function(
            lambda channels: average_similar_pixels(channels, search_window, 3, _similarity)
        )
        graph = function.get_concrete_function(tf.TensorSpec([None, 8, 8, 1])).graph.as_graph_def()
        return len(graph.node) + sum(len(body.node_def) for body in graph.library.function)

    assert count_operations(21) == count_operations(3)


MIN_AGREEMENT = 0.995


def _random(size, channels):
    return np.random.default_rng(size).integers(0, 256, (3, size, size, channels), np.uint8)


def _blurred(size, channels):
    images = [cv2.GaussianBlur(image, (0, 0), 1.5) for image in _random(size, channels)]
    return np.reshape(images, (3, size, size, channels))


def _natural(size, channels):
    photographs = sklearn.datasets.load_sample_images().images
    crops = [photograph[150 : 150 + size, 250 : 250 + size] for photograph in photographs]
    noise = np.random.default_rng(0).integers(-8, 9, (2, size, size, 3))
    return np.clip(np.stack(crops) + noise, 0, 255).astype(np.uint8)[..., :channels].copy()


def _opencv(levels, search_window, template_window, strength):
    windows = {"templateWindowSize": template_window, "searchWindowSize": search_window}
    if levels.shape[-1] == 1:
        denoised = [cv2.fastNlMeansDenoising(image, None, strength, **windows) for image in levels]
    else:
        denoised = [
            cv2.fastNlMeansDenoisingColored(image, None, strength, strength, **windows)
            for image in levels
        ]
    return np.reshape(denoised, levels.shape)


def _agreement(levels, *parameters):
    """Smallest share, over the images, of values that are within one level of OpenCV's."""
    images = tf.constant(levels / 255.0, tf.float32)
    denoised = denoise_non_local_means(images, *parameters).numpy() * 255.0
    return (np.abs(denoised - _opencv(levels, *parameters)) < 1.01).mean(axis=(1, 2, 3)).min()


@pytest.mark.parametrize("strength", [4, 10])
@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_agrees_with_opencv_on_random_blurred_and_natural_images(channels, size, strength):
    levels = np.concatenate([make(size, channels) for make in (_random, _blurred, _natural)])
    assert _agreement(levels, 13, 3, strength) >= MIN_AGREEMENT


@pytest.mark.parametrize(("search_window", "template_window"), [(3, 1), (11, 3), (21, 7), (5, 11)])
@pytest.mark.parametrize("channels", [1, 3])
def test_agrees_with_opencv_for_other_windows(channels, search_window, template_window):
    levels = _blurred(16, channels)[:1]
    assert _agreement(levels, search_window, template_window, 10) >= MIN_AGREEMENT


DIGITS = np.rint(sklearn.datasets.load_digits().images[:30, :, :, np.newaxis] * (255 / 16))


@pytest.mark.parametrize(
    "levels",
    [DIGITS.astype(np.uint8), _random(8, 1)[:, :5, :3].copy(), _random(8, 3)[:, :5, :3].copy()],
    ids=["digits", "small", "small_color"],
)
@pytest.mark.parametrize("strength", [4, 10])
def test_agrees_with_opencv_on_digits_and_images_smaller_than_the_windows(levels, strength):
    assert _agreement(levels, 13, 3, strength) >= MIN_AGREEMENT


def test_passes_red_where_opencv_expects_blue():
    levels = _blurred(32, 3)
    swapped = _opencv(levels[..., ::-1].copy(), 13, 3, 10)[..., ::-1]
    denoised = denoise_non_local_means(tf.constant(levels / 255.0, tf.float32), 13, 3, 10) * 255.0
    assert np.abs(denoised - swapped).max() > 3.0
    # It denoises rather than copies.
    assert (np.abs(denoised - levels) > 1).mean() > 0.1


@pytest.mark.parametrize("value", [-0.2, 1.3])
def test_clips_values_outside_the_range(value):
    denoised = denoise_non_local_means(tf.fill([1, 8, 8, 1], value), 3, 3, 4)
    np.testing.assert_array_equal(denoised, np.full((1, 8, 8, 1), np.clip(value, 0, 1)))


@pytest.mark.parametrize("function", [denoise_non_local_means, denoise_non_local_means_smoothly])
def test_rejects_other_numbers_of_channels(function):
    with pytest.raises(SfmError, match="images of 4 channels; expected 1 or 3"):
        function(tf.zeros([1, 8, 8, 4]), 3, 3, 4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [4, 10])
def test_smooth_version_stays_near_opencv(channels, strength):
    levels = _natural(32, channels)
    images = tf.constant(levels / 255.0, tf.float32)
    smooth = denoise_non_local_means_smoothly(images, 13, 3, strength) * 255.0
    # 8-bit CIELab alone moves RGB by about one level.
    assert np.abs(smooth - _opencv(levels, 13, 3, strength)).mean() < 1.5


@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_gradient_is_the_numerical_derivative(channels):
    generator = np.random.default_rng(0)
    images = tf.constant(generator.uniform(0.4, 0.5, (1, 6, 6, channels)))
    direction = generator.standard_normal(images.shape)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(denoise_non_local_means_smoothly(images, 5, 3, 10) ** 2)
    slope = np.sum(tape.gradient(loss, images) * direction)

    def loss_at(step):
        return tf.reduce_sum(
            denoise_non_local_means_smoothly(images + step * direction, 5, 3, 10) ** 2
        )

    numerical = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
    np.testing.assert_allclose(slope, numerical, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_gradient_is_finite_on_black_and_white(channels):
    images = np.zeros((1, 8, 8, channels), np.float32)
    images[:, :4] = 1.0
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        smooth = denoise_non_local_means_smoothly(images, 5, 3, 4)
    gradient = tape.gradient(smooth, images).numpy()
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient) > 0).any()
