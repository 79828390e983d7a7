"""The endpoints are checked against NumPy, SciPy and Pillow, through an export and a reload."""

import io

import keras
import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import tensorflow as tf
from PIL import Image

from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving.signatures import build_archive

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


def expected_defended_images(images: np.ndarray) -> np.ndarray:
    squeezed = np.rint(images.astype(np.float64) * MASK * 7) / 7
    return scipy.ndimage.median_filter(squeezed, size=(1, 3, 3, 1), mode="reflect")


def expected_logits(images: np.ndarray) -> np.ndarray:
    return expected_defended_images(images).mean(axis=(1, 2)) @ KERNEL


def exported(defended: DefendedModel, folder):
    build_archive(defended).write_out(str(folder), verbose=False)
    return tf.saved_model.load(str(folder))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return exported(tiny_defended_model(), tmp_path_factory.mktemp("export") / "model")


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def assert_answers(answer, expected: np.ndarray) -> None:
    np.testing.assert_allclose(answer["logits"], expected, atol=1e-5)
    np.testing.assert_allclose(
        answer["probabilities"], scipy.special.softmax(expected, axis=-1), atol=1e-5
    )
    np.testing.assert_array_equal(answer["class_id"], np.argmax(expected, axis=-1))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_answers_equal_those_of_numpy_for_any_batch_size(loaded, count):
    images = np.random.default_rng(count).random((count, 8, 8, 3)).astype(np.float32)
    answer = loaded.signatures["serving_default"](images=tf.constant(images))
    assert_answers(answer, expected_logits(images))


def test_images_differ_in_their_class(loaded):
    images = np.random.default_rng(7).random((64, 1, 1, 3)) * np.ones((1, 8, 8, 1))
    answer = loaded.signatures["serving_default"](images=tf.constant(images.astype(np.float32)))
    assert len(set(answer["class_id"].numpy().tolist())) > 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_files_are_answered_as_their_pixels(loaded, count):
    pixels = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)
    files = tf.constant([png(image) for image in pixels], tf.string)
    answer = loaded.signatures["predict_bytes"](image_bytes=files)
    assert_answers(answer, expected_logits(pixels / np.float32(255)))
    np.testing.assert_array_equal(answer["status"], np.zeros(count))


def test_what_cannot_be_classified_scores_neutrally_beside_what_can(loaded):
    pixels = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3), np.uint8)
    vast = png(np.zeros((4097, 1, 3), np.uint8))
    files = tf.constant([png(pixels[0]), b"text", vast, png(pixels[1])])
    answer = loaded.signatures["predict_bytes"](image_bytes=files)
    assert answer["status"].numpy().tolist() == [0, 1, 2, 0]
    assert answer["class_id"].numpy().tolist()[1:3] == [-1, -1]
    np.testing.assert_array_equal(answer["logits"][1:3], np.zeros((2, 4)))
    np.testing.assert_array_equal(answer["probabilities"][1:3], np.full((2, 4), 0.25))
    images = {name: values.numpy()[[0, 3]] for name, values in answer.items()}
    assert_answers(images, expected_logits(pixels / np.float32(255)))


def test_scores_are_neutral_even_of_a_model_that_makes_nan_of_zeros(tmp_path):
    inputs = keras.Input((4, 4, 1))
    divided = keras.ops.divide(inputs, keras.ops.sum(inputs, axis=(1, 2, 3), keepdims=True))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(divided)))
    loaded = exported(DefendedModel(model), tmp_path / "model")
    answer = loaded.signatures["predict_bytes"](image_bytes=tf.constant([b"text"]))
    assert answer["logits"].numpy().tolist() == [[0.0, 0.0]]
    assert answer["probabilities"].numpy().tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_explanations_are_the_images_between_the_parts(loaded, count):
    images = np.random.default_rng(count).random((count, 8, 8, 3)).astype(np.float32)
    answer = loaded.signatures["explain"](images=tf.constant(images))
    expected = {
        "mask": np.full((count, 8, 8, 1), MASK),
        "masked_image": MASK * images,
        "defended_image": expected_defended_images(images),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(answer[name], values, atol=1e-6)
    np.testing.assert_array_equal(answer["class_id"], expected_logits(images).argmax(axis=-1))


@pytest.mark.parametrize("name", ["serving_default", "predict_bytes", "explain"])
def test_no_image_has_no_answer_whatever_the_layers(tmp_path, name):
    # Convolutions that change the number of channels are what oneDNN gets wrong without images.
    inputs = keras.Input((8, 8, 1))
    features = keras.layers.BatchNormalization()(keras.layers.Conv2D(5, 3)(inputs))
    features = keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 3)(features))
    logits = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(features))
    signature = exported(DefendedModel(keras.Model(inputs, logits)), tmp_path / "m").signatures[
        name
    ]
    ((key, spec),) = signature.structured_input_signature[1].items()
    answer = signature(**{key: tf.zeros([0, *spec.shape[1:]], spec.dtype)})
    assert {key: values.shape[0] for key, values in answer.items()} == dict.fromkeys(answer, 0)


IMAGES = (tf.float32, [None, 8, 8, 3])
CLASSIFICATION = {
    "logits": (tf.float32, [None, 4]),
    "probabilities": (tf.float32, [None, 4]),
    "class_id": (tf.int64, [None]),
}
EXPLANATION = {
    "mask": (tf.float32, [None, 8, 8, 1]),
    "masked_image": IMAGES,
    "defended_image": IMAGES,
    "mask_png_bytes": (tf.string, [None]),
    "masked_png_bytes": (tf.string, [None]),
    "defended_png_bytes": (tf.string, [None]),
    "class_id": (tf.int64, [None]),
}
SPECS = {
    "serving_default": ({"images": IMAGES}, CLASSIFICATION),
    "predict_bytes": (
        {"image_bytes": (tf.string, [None])},
        CLASSIFICATION | {"status": (tf.int64, [None])},
    ),
    "explain": ({"images": IMAGES}, EXPLANATION),
}


def test_names_types_and_shapes_leave_the_batch_open(loaded):
    def described(specs):
        return {name: (spec.dtype, spec.shape.as_list()) for name, spec in specs.items()}

    assert {
        name: (
            described(function.structured_input_signature[1]),
            described(function.structured_outputs),
        )
        for name, function in loaded.signatures.items()
    } == SPECS


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
