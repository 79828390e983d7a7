import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.preprocessors.squeezers import default_squeezers, squeezed_distances


def test_the_distance_is_that_of_the_squeezer_that_moves_the_prediction_most():
    images = np.random.default_rng(0).uniform(size=(5, 4, 4, 1)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    squeezers = [parse_preprocessor(spec, "identity") for spec in ("bit_depth_1", "bit_depth_3")]

    def logits_of(images):
        return tf.reshape(images, (-1, 16)) @ kernel

    predictions = softmax(images.reshape(-1, 16) @ kernel, axis=1)
    squeezed = [
        softmax((np.round(images * levels) / levels).reshape(-1, 16) @ kernel, axis=1)
        for levels in (1, 7)
    ]
    expected = np.max([np.abs(predictions - each).sum(axis=1) for each in squeezed], axis=0)
    found = squeezed_distances(logits_of, squeezers, tf.constant(images), logits_of(images))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_images_of_two_channels_have_no_default_squeezers():
    with pytest.raises(SfmError, match="No squeezers for images of 2 channels; expected 1 or 3"):
        default_squeezers(2)
