"""The endpoint is checked against NumPy and SciPy, through an export and a reload."""

import keras
import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import tensorflow as tf

from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving.signatures import SIGNATURE_NAME, build_archive

KERNEL = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32) * 9.0
MASK = 0.7


def tiny_defended_model() -> DefendedModel:
    """Mean colours times a fixed matrix, behind a constant mask: NumPy can do the same."""
    inputs = keras.Input((8, 8, 3))
    dense = keras.layers.Dense(4, use_bias=False)
    classifier = keras.Model(inputs, dense(keras.layers.GlobalAveragePooling2D()(inputs)))
    dense.set_weights([KERNEL])
    masked = keras.Input((8, 8, 3))
    constant = keras.layers.Conv2D(1, 1, activation="sigmoid")
    masker = keras.Model(masked, constant(masked))
    logit = np.log(MASK / (1.0 - MASK))
    constant.set_weights([np.zeros((1, 1, 3, 1)), np.array([logit])])
    return DefendedModel(classifier, masker, parse_preprocessor("bit_depth_3+median_3"))


def expected_logits(images: np.ndarray) -> np.ndarray:
    squeezed = np.rint(images.astype(np.float64) * MASK * 7) / 7
    smoothed = scipy.ndimage.median_filter(squeezed, size=(1, 3, 3, 1), mode="reflect")
    return smoothed.mean(axis=(1, 2)) @ KERNEL


@pytest.fixture(scope="module")
def signature(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    build_archive(tiny_defended_model()).write_out(str(folder), verbose=False)
    loaded = tf.saved_model.load(str(folder))
    assert list(loaded.signatures) == [SIGNATURE_NAME]
    function = loaded.signatures[SIGNATURE_NAME]
    function.keep_alive = loaded
    return function


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_answers_equal_those_of_numpy_for_any_batch_size(signature, count):
    images = np.random.default_rng(count).random((count, 8, 8, 3)).astype(np.float32)
    answer = signature(images=tf.constant(images))
    expected = expected_logits(images)
    np.testing.assert_allclose(answer["logits"], expected, atol=1e-5)
    np.testing.assert_allclose(
        answer["probabilities"], scipy.special.softmax(expected, axis=-1), atol=1e-5
    )
    np.testing.assert_array_equal(answer["class_id"], np.argmax(expected, axis=-1))


def test_images_differ_in_their_class(signature):
    images = np.random.default_rng(7).random((64, 1, 1, 3)) * np.ones((1, 8, 8, 1))
    answer = signature(images=tf.constant(images.astype(np.float32)))
    assert len(set(answer["class_id"].numpy().tolist())) > 1


def test_names_types_and_shapes_leave_the_batch_open(signature):
    inputs = signature.structured_input_signature[1]
    outputs = signature.structured_outputs
    assert {name: (spec.dtype, spec.shape.as_list()) for name, spec in inputs.items()} == {
        "images": (tf.float32, [None, 8, 8, 3])
    }
    assert {name: (spec.dtype, spec.shape.as_list()) for name, spec in outputs.items()} == {
        "logits": (tf.float32, [None, 4]),
        "probabilities": (tf.float32, [None, 4]),
        "class_id": (tf.int64, [None]),
    }


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
