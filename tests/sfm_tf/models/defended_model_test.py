"""Tests of the defended forward pass against NumPy on models small enough to compute by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.attention_unet import build_masker
from sfm_tf.models.defended_model import DefendedModel, in_precision
from sfm_tf.models.imported_model import load_classifier
from sfm_tf.models.resnet import build_classifier
from sfm_tf.preprocessors.chain import parse_preprocessor

_SHAPE = (4, 4, 3)


def _images(seed=0, count=5):
    return np.random.default_rng(seed).uniform(size=(count, *_SHAPE)).astype(np.float32)


def _linear_classifier():
    inputs = keras.Input(_SHAPE)
    logits = keras.layers.Dense(2, dtype="float32")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, logits)


def _pixel_masker():
    """Masks each pixel by the sigmoid of a linear function of its channels."""
    inputs = keras.Input(_SHAPE)
    mask = keras.layers.Conv2D(1, 1, activation="sigmoid", dtype="float32")(inputs)
    return keras.Model(inputs, mask)


def _expected_mask(masker, images):
    kernel, bias = masker.get_weights()
    return 1 / (1 + np.exp(-(images @ kernel[0, 0] + bias)))


def _expected_logits(classifier, images):
    kernel, bias = classifier.get_weights()
    return images.reshape(len(images), -1) @ kernel + bias


def _squeeze(images, bits):
    levels = 2**bits - 1
    return np.round(images * levels) / levels


def test_masks_then_pre_processes_then_classifies():
    classifier, masker = _linear_classifier(), _pixel_masker()
    model = DefendedModel(classifier, masker, parse_preprocessor("bit_depth_3"))
    images = _images()
    mask = _expected_mask(masker, images)
    masked = mask * images
    assert model.mask(images).shape == (5, 4, 4, 1)
    np.testing.assert_allclose(model.mask(images), mask, atol=1e-6)
    np.testing.assert_allclose(model.masked(images), masked, atol=1e-6)
    np.testing.assert_allclose(model.defended(images), _squeeze(masked, 3), atol=1e-6)
    expected = _expected_logits(classifier, _squeeze(masked, 3))
    np.testing.assert_allclose(model(images), expected, atol=1e-5)
    # Pre-processing first would be another function.
    wrong_order = _expected_mask(masker, _squeeze(images, 3)) * _squeeze(images, 3)
    assert np.abs(_expected_logits(classifier, wrong_order) - expected).max() > 1e-3


def test_is_the_bare_classifier_without_masker_and_pre_processing():
    classifier = _linear_classifier()
    model = DefendedModel(classifier)
    np.testing.assert_array_equal(model.mask(_images()), np.ones((5, 4, 4, 1)))
    np.testing.assert_array_equal(model.defended(_images()), _images())
    np.testing.assert_allclose(model(_images()), _expected_logits(classifier, _images()), atol=1e-5)


def test_without_preprocessor_keeps_mask_and_weights():
    model = DefendedModel(
        _linear_classifier(), _pixel_masker(), parse_preprocessor("bit_depth_1", "smooth")
    )
    gray_box = model.without_preprocessor()
    assert gray_box.preprocessor.spec == "none"
    np.testing.assert_array_equal(gray_box.defended(_images()), model.masked(_images()))
    model.classifier.layers[-1].bias.assign([7.0, -7.0])
    assert gray_box(_images()).numpy()[:, 0].min() > gray_box(_images()).numpy()[:, 1].max()


def _normalised(last_layer):
    inputs = keras.Input(_SHAPE)
    return keras.Model(inputs, last_layer(keras.layers.BatchNormalization()(inputs)))


def test_always_runs_in_inference_mode():
    classifier = _normalised(
        keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2, dtype="float32")])
    )
    masker = _normalised(keras.layers.Conv2D(1, 1, activation="sigmoid"))
    model = DefendedModel(classifier, masker)
    before = [np.copy(weight) for weight in model.get_weights()]
    alone = model(_images()[:1], training=True).numpy()
    among_others = model(_images(), training=True).numpy()[:1]
    np.testing.assert_allclose(alone, among_others, atol=1e-6)
    after = model.get_weights()
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_images_are_not_rounded_under_mixed_precision():
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        classifier = _linear_classifier()
        classifier.layers[-1].kernel.assign(np.eye(48, 2))
        model = DefendedModel(classifier)
    finally:
        keras.config.set_dtype_policy(previous)
    images = np.full((1, *_SHAPE), 129 / 255, np.float32)  # Needs more than bfloat16's 8 bits.
    assert model.defended(images).numpy()[0, 0, 0, 0] == np.float32(129 / 255)
    assert model.compute_dtype == "float32"


@pytest.mark.parametrize("has_masker", [True, False])
def test_survives_saving_and_loading(tmp_path, has_masker):
    masker = _pixel_masker() if has_masker else None
    model = DefendedModel(
        _linear_classifier(), masker, parse_preprocessor("bit_depth_2+median_3", "smooth")
    )
    model.save(tmp_path / "defended.keras")
    loaded = keras.saving.load_model(tmp_path / "defended.keras", safe_mode=True)
    assert loaded.preprocessor == model.preprocessor
    assert (loaded.masker is not None) == has_masker
    np.testing.assert_allclose(loaded(_images()), model(_images()), atol=1e-6)


SHAPE = (8, 8, 3)
IMAGES = np.random.default_rng(0).random((4, *SHAPE), dtype=np.float32)


def _defended():
    keras.utils.set_random_seed(0)
    return DefendedModel(
        build_classifier("resnet18", SHAPE, 5, width=4),
        build_masker(SHAPE, width=4, depth=1),
        parse_preprocessor("bit_depth_4"),
    )


@pytest.mark.parametrize(("precision", "rounding"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_answers_differ_by_the_rounding_of_16_bits_and_no_more(precision, rounding):
    model = _defended().without_preprocessor()
    expected, logits = model(IMAGES), in_precision(model, precision)(IMAGES)
    assert logits.dtype == tf.float32
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 0 < difference < 30 * rounding


def test_all_layers_but_those_of_the_output_compute_in_16_bits():
    model = _defended()
    twin = in_precision(model, "bfloat16")
    assert twin.preprocessor == model.preprocessor
    for part, copy in ((model.classifier, twin.classifier), (model.masker, twin.masker)):
        kinds = {layer.compute_dtype for layer in copy.layers[1:-1]}
        assert "bfloat16" in kinds
        assert copy.layers[-1].compute_dtype == "float32"
        assert {layer.compute_dtype for layer in part.layers} == {"float32"}
        for weight, original in zip(copy.weights, part.weights, strict=True):
            assert weight.dtype == original.dtype
            np.testing.assert_array_equal(weight, original)


def _nested(inner):
    """Returns a model as `load_classifier` does: the user's own inside one of known shapes."""
    images = keras.Input(SHAPE)
    return keras.Model(images, inner(images), name="imported")


def test_models_inside_a_model_are_copied_by_their_layers():
    keras.utils.set_random_seed(0)
    inmost = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Conv2D(4, 3, name="hidden"), keras.layers.ReLU()]
    )
    layers = [inmost, keras.layers.Flatten(), keras.layers.Dense(3, name="logits")]
    model = _nested(keras.Sequential([keras.Input(SHAPE), *layers]))
    twin = in_precision(model, "bfloat16")
    user_model = twin.layers[-1]
    assert user_model.layers[0].get_layer("hidden").compute_dtype == "bfloat16"
    assert user_model.get_layer("logits").compute_dtype == "float32"
    difference = np.abs(twin(IMAGES) - model(IMAGES)).max()
    assert 0 < difference < 0.05 * np.abs(model(IMAGES)).max()


class Subclassed(keras.Model):
    def call(self, images):
        return keras.ops.mean(images, axis=(1, 2))


def test_a_model_inside_a_model_is_not_left_in_float32_in_silence():
    with pytest.raises(SfmError, match="it holds inner, a model of a class of its own"):
        in_precision(_nested(Subclassed(name="inner")), "bfloat16")


def test_a_saved_model_is_attacked_in_its_own_precision(tmp_path):
    keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3)]).export(
        tmp_path / "model", verbose=False
    )
    model = load_classifier(tmp_path / "model", SHAPE, 3)
    with pytest.raises(SfmError, match="a SavedModel computes as it was saved.+; use float32"):
        in_precision(model, "bfloat16")


def test_a_model_that_cannot_be_rebuilt_is_refused():
    class Own(keras.layers.Layer):
        def __init__(self, needed, **options):
            super().__init__(**options)
            self.needed = needed

        def call(self, images):
            return images

        def get_config(self):
            return super().get_config()

    layers = [keras.Input(SHAPE), Own(1), keras.layers.Flatten(), keras.layers.Dense(3)]
    with pytest.raises(SfmError, match="cannot be copied to compute in bfloat16"):
        in_precision(keras.Sequential(layers), "bfloat16")
