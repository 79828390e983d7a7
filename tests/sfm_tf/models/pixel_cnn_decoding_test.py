"""Tests of the cached decoding against one that runs the whole network for each value."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.pixel_cnn import build_pixel_cnn
from sfm_tf.models.pixel_cnn_decoding import compile_decoder, read_weights


def test_reads_every_weight_of_the_model_in_the_order_of_its_blocks():
    model = build_pixel_cnn((4, 5, 3), 4, 11, 2, seed=0)
    weights = read_weights(model)
    names = {layer.name for layer in model.layers if layer.weights}
    assert set(weights.layers) == names
    for name, convolution in weights.layers.items():
        kernel, bias = model.get_layer(name).get_weights()
        np.testing.assert_array_equal(convolution.kernel, kernel)
        np.testing.assert_array_equal(convolution.bias, bias)
    seconds = [weights.layers[f"right{number}_second"] for number in range(1, 12)]
    assert weights.blocks_of("right", ["second"]) == seconds
    assert (weights.image_shape, weights.depth) == ((4, 5, 3), 11)


def test_later_training_does_not_change_them():
    model = build_pixel_cnn((4, 4, 1), 2, 1, 2, seed=0)
    weights = read_weights(model)
    digest = weights.digest()
    model.get_layer("parameters").bias.assign(np.ones(6))
    assert weights.digest() == digest
    assert read_weights(model).digest() != digest


def test_digest_tells_weights_and_architectures_apart_but_not_files(tmp_path):
    model = build_pixel_cnn((4, 4, 1), 2, 1, 2, seed=0)
    model.save(tmp_path / "pixel_cnn.keras")
    loaded = keras.saving.load_model(tmp_path / "pixel_cnn.keras", safe_mode=True)
    others = [
        build_pixel_cnn((4, 4, 1), 2, 1, 2, seed=1),
        build_pixel_cnn((4, 5, 1), 2, 1, 2, seed=0),
        build_pixel_cnn((4, 4, 1), 2, 1, 3, seed=0),
    ]
    assert read_weights(loaded).digest() == read_weights(model).digest()
    assert len({read_weights(each).digest() for each in [model, *others]}) == 4


def test_are_readable_while_a_graph_is_built():
    model = build_pixel_cnn((4, 4, 1), 2, 1, 2, seed=0)

    @tf.function
    def read():
        return read_weights(model).layers["parameters"].kernel

    np.testing.assert_array_equal(read(), model.get_layer("parameters").kernel.numpy())


def test_rejects_another_model():
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs), name="other")
    with pytest.raises(SfmError, match="'other' is no PixelCNN; expected .* build_pixel_cnn"):
        read_weights(model)


def _model(image_shape, width=4, depth=2, mixtures=3, seed=0, policy="float32"):
    """A model with weights large enough for sharp distributions, and biases other than zero."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build_pixel_cnn(image_shape, width, depth, mixtures)
    finally:
        keras.config.set_dtype_policy(previous)
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            kernel = generator.normal(size=kernel.shape) / np.sqrt(kernel[..., 0].size)
            layer.set_weights([kernel, generator.normal(size=bias.shape) * 0.3])
    return model


def _levels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.int32)


def _channel_probabilities(parameters, earlier, channels):
    """The 256 probabilities of one channel of one pixel, straight from the definition."""
    kinds = parameters.reshape(1 + 2 * channels + channels * (channels - 1) // 2, -1)
    weights = scipy.special.softmax(kinds[0])
    centered = np.array(earlier) * 2 / 255 - 1
    edges = np.concatenate([[-np.inf], np.arange(1, 256) * 2 / 255 - 1 - 1 / 255, [np.inf]])
    for channel in range(len(earlier) + 1):
        mean = kinds[1 + channel].copy()
        for other in range(channel):
            pair = {(1, 0): 0, (2, 0): 1, (2, 1): 2}[channel, other]
            mean += np.tanh(kinds[1 + 2 * channels + pair]) * centered[other]
        scale = np.exp(np.maximum(kinds[1 + channels + channel], -7))
        masses = np.diff(scipy.stats.logistic(mean, scale).cdf(edges[:, np.newaxis]), axis=0)
        if channel < len(earlier):
            weights = weights * masses[int(earlier[channel])]
    return masses @ weights


def _decode_naively(model, levels, epsilon):
    """Runs the whole network, in float64, once for each value of each pixel."""
    features = keras.Model(model.input, model.get_layer("parameters").input)
    run = tf.function(features, jit_compile=False)
    kernel, bias = model.get_layer("parameters").get_weights()
    decoded = levels.copy()
    _, height, width, channels = levels.shape
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                pixel = run(tf.constant(decoded / 255)).numpy()[:, row, column]
                for image, parameters in zip(decoded, pixel @ kernel[0, 0] + bias, strict=True):
                    earlier = image[row, column, :channel]
                    probabilities = _channel_probabilities(parameters, earlier, channels)
                    value = image[row, column, channel]
                    lowest, highest = max(value - epsilon, 0), min(value + epsilon, 255)
                    best = np.argmax(probabilities[lowest : highest + 1])
                    image[row, column, channel] = lowest + best
    return decoded


@pytest.mark.parametrize(
    ("shape", "depth", "epsilon"),
    [
        ((4, 3, 1), 3, 40),
        ((3, 3, 3), 2, 16),
        ((2, 4, 3), 1, 255),
        ((1, 3, 3), 2, 60),
        ((3, 1, 1), 2, 5),
    ],
)
def test_chooses_the_levels_that_the_whole_network_does(shape, depth, epsilon):
    model = _model(shape, depth=depth, policy="float64")
    levels = _levels((3, *shape))
    expected = _decode_naively(model, levels, epsilon)
    decoded = compile_decoder(read_weights(model))(levels, epsilon)
    np.testing.assert_array_equal(decoded, expected)
    # Otherwise the test would not tell an argmax from a bound.
    inside = np.abs(expected - levels) < epsilon
    assert inside.mean() > 0.0
    assert (expected != levels).any()


def test_no_image_bears_on_another():
    decode = compile_decoder(read_weights(_model((6, 5, 3))))
    levels = _levels((7, 6, 5, 3))
    together = decode(levels, 16).numpy()
    for index in range(7):
        np.testing.assert_array_equal(decode(levels[index : index + 1], 16)[0], together[index])
    np.testing.assert_array_equal(decode(levels[::-1].copy(), 16)[::-1], together)


def test_takes_an_empty_batch():
    decode = compile_decoder(read_weights(_model((4, 4, 3))))
    assert decode(np.zeros((0, 4, 4, 3), np.int32), 16).shape == (0, 4, 4, 3)


def test_takes_the_lowest_of_equally_probable_levels():
    model = _model((2, 3, 1), mixtures=1)
    layer = model.get_layer("parameters")
    # So wide a logistic that all levels but the open ones at both ends are equal.
    layer.set_weights([np.zeros((1, 1, 4, 3)), np.array([0.0, 0.0, 40.0])])
    decode = compile_decoder(read_weights(model))
    levels = np.array([[100, 6, 200], [249, 5, 250]], np.int32).reshape(1, 2, 3, 1)
    expected = np.array([[95, 1, 195], [244, 0, 255]]).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(decode(levels, 5), expected)


def test_one_graph_serves_any_epsilon_and_batch():
    decode = compile_decoder(read_weights(_model((3, 3, 1))))
    levels = _levels((2, 3, 3, 1))
    for epsilon in (0, 3, 16, 255):
        decoded = decode(levels, epsilon).numpy()
        assert np.abs(decoded - levels).max() <= epsilon
        assert decoded.min() >= 0
        assert decoded.max() <= 255
    decode(levels[:1], 16)
    assert decode.experimental_get_tracing_count() == 1
