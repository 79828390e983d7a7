import io

import cv2
import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.jpeg_compression import (
    compress_jpeg,
    compress_jpeg_smoothly,
)

SHAPES = [(8, 8), (32, 32), (13, 21), (5, 3)]
FUNCTIONS = [compress_jpeg, compress_jpeg_smoothly]


def _photographs(height, width, channels):
    photographs = sklearn.datasets.load_sample_images().images
    corners = [(150, 250), (60, 60), (250, 400)]
    crops = [
        photograph[row : row + height, column : column + width, :channels]
        for photograph in photographs
        for row, column in corners
    ]
    return np.stack(crops)


def _pillow(levels, quality):
    decoded = []
    for image in levels:
        file = io.BytesIO()
        image = image.squeeze(-1) if image.shape[-1] == 1 else image
        PIL.Image.fromarray(image).save(file, "JPEG", quality=quality)
        decoded.append(np.array(PIL.Image.open(file)))
    return np.reshape(decoded, levels.shape)


def _images(levels):
    return tf.constant(levels / 255.0, tf.float32)


@pytest.mark.parametrize("quality", [1, 10, 75, 100])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_pillow_within_one_level(channels, shape, quality):
    levels = _photographs(*shape, channels)
    compressed = compress_jpeg(_images(levels), quality) * 255.0
    np.testing.assert_allclose(compressed, _pillow(levels, quality), atol=1.01)


@pytest.mark.parametrize("quality", [20, 75])
def test_equals_opencv_within_two_levels(quality):
    levels = _photographs(32, 32, 3)
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    files = [cv2.imencode(".jpg", image[..., ::-1], settings)[1] for image in levels]
    expected = [cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1] for file in files]
    np.testing.assert_allclose(compress_jpeg(_images(levels), quality) * 255.0, expected, atol=2.01)


@pytest.mark.parametrize("channels", [1, 3])
def test_rounds_to_the_nearest_level_and_clips_before(channels):
    levels = _photographs(16, 16, channels)
    noise = np.random.default_rng(0).uniform(-0.45, 0.45, levels.shape)
    np.testing.assert_array_equal(
        compress_jpeg(_images(levels + noise), 75), compress_jpeg(_images(levels), 75)
    )
    white = compress_jpeg(tf.fill([1, 8, 8, channels], 1.3), 75)
    np.testing.assert_array_equal(white, np.ones((1, 8, 8, channels)))


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_version_is_nearer_to_the_real_one_than_the_image_is(channels, shape, quality):
    levels = _photographs(*shape, channels)
    smooth = compress_jpeg_smoothly(_images(levels), quality).numpy() * 255.0
    compressed = _pillow(levels, quality).astype(float)
    assert np.abs(smooth - compressed).mean() < 0.55 * np.abs(levels - compressed).mean()
    assert np.abs(smooth - compressed).mean() < 3.0


def test_smooth_version_of_the_best_quality_is_the_image():
    levels = _photographs(32, 32, 1)
    smooth = compress_jpeg_smoothly(_images(levels), 100) * 255.0
    np.testing.assert_allclose(smooth, levels, atol=2.0)
    assert np.abs(smooth - levels).mean() < 0.3


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_flat_grey_stays_flat_and_grey(function, value):
    compressed = function(tf.fill([1, 13, 9, 3], value), 75)
    np.testing.assert_allclose(compressed, np.full((1, 13, 9, 3), value), atol=1.5 / 255.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_gradient_is_the_numerical_derivative(channels):
    generator = np.random.default_rng(0)
    images = tf.constant(generator.uniform(0.3, 0.7, (1, 9, 5, channels)))
    direction = generator.standard_normal(images.shape)
    weights = generator.standard_normal(images.shape)

    def loss_at(step):
        return tf.reduce_sum(weights * compress_jpeg_smoothly(images + step * direction, 75))

    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(weights * compress_jpeg_smoothly(images, 75))
    slope = np.sum(tape.gradient(loss, images) * direction)
    np.testing.assert_allclose(slope, (loss_at(1e-7) - loss_at(-1e-7)) / 2e-7, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0.0, 0.3, 128.0 / 255.0, 1.0])
def test_smooth_gradient_is_finite_and_non_zero_even_on_flat_images(value, channels):
    images = tf.fill([1, 9, 12, channels], value)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(compress_jpeg_smoothly(images, 50)[:, 4, 6])
    gradient = tape.gradient(loss, images).numpy()
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient[:, :8, :8]) > 0).mean() > 0.9


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [0, 2])
def test_compiles_for_an_unknown_batch_even_an_empty_one(function, count, channels):
    compiled = tf.function(
        lambda images: function(images, 75),
        input_signature=[tf.TensorSpec([None, 9, 7, channels], tf.float32)],
    )
    images = _images(_photographs(9, 7, channels))[:count]
    compressed = compiled(images)
    assert compressed.dtype == tf.float32
    np.testing.assert_allclose(compressed, function(images, 75), atol=1e-6)
    assert compiled.get_concrete_function().output_shapes.as_list() == [None, 9, 7, channels]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_rejects_other_numbers_of_channels(function):
    with pytest.raises(SfmError, match="images of 4 channels; expected 1 or 3"):
        function(tf.zeros([1, 8, 8, 4]), 75)
