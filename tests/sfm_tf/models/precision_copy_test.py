import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.attention_unet import build_masker
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.precision_copy import in_precision
from sfm_tf.models.resnet import build_classifier
from sfm_tf.preprocessors.chain import parse_preprocessor

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
    for part, copy in ((model.classifier, twin.classifier), (model.masker, twin.masker)):
        kinds = {layer.compute_dtype for layer in copy.layers[1:-1]}
        assert "bfloat16" in kinds
        assert copy.layers[-1].compute_dtype == "float32"
        assert {layer.compute_dtype for layer in part.layers} == {"float32"}
        for weight, original in zip(copy.weights, part.weights, strict=True):
            assert weight.dtype == original.dtype
            np.testing.assert_array_equal(weight, original)


def test_the_preprocessing_stays():
    assert in_precision(_defended(), "float16").preprocessor == parse_preprocessor("bit_depth_4")


def test_a_model_inside_a_model_is_not_left_in_float32_in_silence():
    inner = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten()], name="inner")
    model = keras.Sequential([keras.Input(SHAPE), inner, keras.layers.Dense(3)])
    with pytest.raises(SfmError, match="it holds the model inner; expected plain layers"):
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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
