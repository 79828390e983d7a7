"""Tests of the classifiers against published parameter counts and closed forms."""

import dataclasses
import os
import random
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.resnet import build_classifier
from sfm_tf.models.settings import ModelConfig


def _trainable_parameters(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def _images(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


# The 10-class counts are those of github.com/kuangliu/pytorch-cifar; 200 classes change the last
# layer alone, whose inputs are 512 features. That of the small one is 269,722
# (github.com/akamaster/pytorch_resnet_cifar10) and two projections with normalisation.
@pytest.mark.parametrize(
    ("name", "input_shape", "class_count", "width", "published"),
    [
        ("resnet18", (32, 32, 3), 10, 64, 11_173_962),
        ("resnet50", (32, 32, 3), 10, 64, 23_520_842),
        ("resnet18", (64, 64, 3), 200, 64, 11_173_962 + 190 * (512 + 1)),
        ("resnet20", (32, 32, 3), 10, 16, 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)),
    ],
)
def test_has_the_published_number_of_parameters(name, input_shape, class_count, width, published):
    model = build_classifier(name, input_shape, class_count, width)
    assert _trainable_parameters(model) == published


def test_three_stages_halve_the_resolution_and_double_the_width():
    model = build_classifier("resnet50", (32, 32, 3), 10, width=4)
    assert model.get_layer("stem_relu").output.shape[1:] == (32, 32, 4)
    assert model.get_layer("pooling").input.shape[1:] == (4, 4, 4 * 8 * 4)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_normalises_and_answers_in_float32_under_any_policy(policy):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build_classifier("resnet18", (8, 8, 1), 7, width=4)
    finally:
        keras.config.set_dtype_policy(previous)
    assert model.output.dtype == "float32"
    assert model.output.shape == (None, 7)
    assert model.get_layer("normalization").compute_dtype == "float32"
    assert model.get_layer("stem_convolution").compute_dtype == policy.removeprefix("mixed_")


def test_normalises_by_the_statistics_it_is_given():
    mean, variance = [0.2, 0.4, 0.6], [0.04, 0.09, 0.01]
    images = _images((5, 8, 8, 3))
    normalised = (images - np.array(mean)) / np.sqrt(variance)
    plain = build_classifier("resnet18", (8, 8, 3), 10, 4, [0, 0, 0], [1, 1, 1], seed=3)
    model = build_classifier("resnet18", (8, 8, 3), 10, 4, mean, variance, seed=3)
    expected = plain(normalised.astype(np.float32)).numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(model(images).numpy(), expected, atol=1e-5)


def test_maps_images_to_minus_one_to_one_without_statistics():
    model = build_classifier("resnet18", (8, 8, 1), 10, width=4)
    normalised = model.get_layer("normalization")(np.array([[[[0.0]], [[0.5]], [[1.0]]]]))
    np.testing.assert_allclose(np.ravel(normalised), [-1.0, 0.0, 1.0], atol=1e-6)


def test_convolutions_start_with_the_variance_of_he_and_no_bias():
    model = build_classifier("resnet18", (32, 32, 3), 10, width=16, seed=0)
    layer = model.get_layer("stage3_block2_1_convolution")
    assert not layer.use_bias
    kernel = layer.kernel.numpy()
    assert kernel.shape == (3, 3, 64, 64)
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.01)


def test_seed_alone_decides_the_initial_weights_which_no_two_layers_share():
    random.seed(1)
    model = build_classifier("resnet18", (8, 8, 1), 10, 4, seed=5)
    first = model.get_weights()
    random.seed(2)
    second = build_classifier("resnet18", (8, 8, 1), 10, 4, seed=5).get_weights()
    other = build_classifier("resnet18", (8, 8, 1), 10, 4, seed=6).get_weights()
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(first, other, strict=True))
    names = ("stage1_block1_1_convolution", "stage1_block1_2_convolution")
    kernels = [model.get_layer(name).kernel.numpy() for name in names]
    assert kernels[0].shape == kernels[1].shape
    assert not np.array_equal(*kernels)


def test_survives_saving_and_loading(tmp_path):
    model = build_classifier("resnet18", (8, 8, 3), 10, 4, [0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    model.save(tmp_path / "classifier.keras")
    loaded = keras.saving.load_model(tmp_path / "classifier.keras", safe_mode=True)
    images = _images((2, 8, 8, 3))
    np.testing.assert_allclose(loaded(images).numpy(), model(images).numpy(), atol=1e-6)


def _with_strided_projections(model):
    """Returns the network as it was published, each projection one convolution with stride 2."""
    config = model.get_config()
    layers = {layer["name"]: layer for layer in config["layers"]}
    for name in [name for name in layers if name.endswith("_subsampling")]:
        convolution = layers[name.replace("_subsampling", "_convolution")]
        convolution["config"]["strides"] = layers[name]["config"]["strides"]
        convolution["inbound_nodes"] = layers.pop(name)["inbound_nodes"]
    return keras.Model.from_config({**config, "layers": list(layers.values())})


def _answers(model, images):
    """Returns logits and the gradients of their squares by weights and images."""
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = model(images, training=True)
        loss = tf.reduce_sum(tf.square(logits))
    return [logits, *tape.gradient(loss, [images, *model.trainable_variables])]


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(
    ("name", "projections"), [("resnet18", 3), ("resnet20", 2), ("resnet50", 3)]
)
def test_subsampled_projections_are_the_strided_ones(name, projections, size):
    model = build_classifier(name, (size, size, 3), 5, width=4, seed=1)
    published = _with_strided_projections(model)
    assert len(model.layers) - len(published.layers) == projections
    assert all(
        layer.strides == (1, 1) or layer.kernel_size == (3, 3)
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    )
    published.set_weights(model.get_weights())
    images = _images((4, size, size, 3))
    for pair in zip(_answers(model, images), _answers(published, images), strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-5 * np.abs(pair[1]).max())


# A crash would end the process, so it is not that of the tests.
_NARROW_TRAINING = """
import keras, tensorflow as tf
from sfm_tf.models.resnet import build_classifier
for size, width in ((64, 4), (64, 8), (96, 4), (96, 8)):
    model = build_classifier("resnet18", (size, size, 3), 5, width)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = tf.random.uniform((32, size, size, 3))
    print(size, width, model.train_on_batch(images, tf.range(32) % 5))
"""


@pytest.mark.slow
def test_narrow_networks_train_on_images_of_64_and_96_pixels():
    command = [sys.executable, "-c", _NARROW_TRAINING]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert len(ended.stdout.splitlines()) == 4


def test_unknown_name_lists_those_of_the_settings():
    (field,) = (field for field in dataclasses.fields(ModelConfig) if field.name == "classifier")
    known = ", ".join(field.metadata["choices"])
    with pytest.raises(SfmError, match=rf"'resnet34'; .* {known}\."):
        build_classifier("resnet34", (8, 8, 1), 10)
