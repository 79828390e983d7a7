"""PNG files are checked with Pillow, images against parts that NumPy can follow."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving.explanation import explain_images


def brightness_model(channels: int) -> DefendedModel:
    """A mask that is the first channel, one bit per value, and the mean as the second of logits."""
    inputs = keras.Input((2, 4, channels))
    masker = keras.Model(inputs, inputs[..., :1])
    images = keras.Input((2, 4, channels))
    mean = keras.ops.mean(images, axis=(1, 2, 3))
    classifier = keras.Model(images, keras.ops.stack([0.5 - mean, mean], axis=-1))
    return DefendedModel(classifier, masker, parse_preprocessor("bit_depth_1"))


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_files_show_each_step(channels):
    images = np.random.default_rng(channels).random((3, 2, 4, channels)).astype(np.float32)
    images[0] = 1.0
    mask = images[..., :1]
    steps = {"mask": mask, "masked": mask * images, "defended": np.rint(mask * images)}
    answer = tf.function(lambda batch: explain_images(brightness_model(channels), batch))(images)
    np.testing.assert_array_equal(answer["mask"], steps["mask"])
    np.testing.assert_allclose(answer["masked_image"], steps["masked"], atol=1e-7)
    np.testing.assert_array_equal(answer["defended_image"], steps["defended"])
    for name, expected in steps.items():
        levels = [pixels(png).reshape(2, 4, -1) for png in answer[f"{name}_png_bytes"].numpy()]
        np.testing.assert_array_equal(levels, np.rint(expected * 255))
    means = steps["defended"].mean(axis=(1, 2, 3))
    np.testing.assert_array_equal(answer["class_id"], (means > 0.25).astype(int))


def test_files_of_values_beyond_the_range_are_black_and_white():
    images = np.array([-3.0, 7.0], np.float32).reshape(2, 1, 1, 1) * np.ones((2, 2, 4, 1))
    defended = DefendedModel(brightness_model(1).classifier)
    answer = explain_images(defended, tf.constant(images, tf.float32))
    levels = [pixels(png) for png in answer["masked_png_bytes"].numpy()]
    np.testing.assert_array_equal(levels, np.broadcast_to([[[0]], [[255]]], (2, 2, 4)))


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
