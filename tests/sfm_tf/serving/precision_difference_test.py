"""The 16 bits are checked against rounding by hand: a dense layer whose weights bfloat16 cuts."""

import keras
import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.serving.precision_difference import compare_precision

# bfloat16 has 8 significant bits: next to 1 its numbers are 1/128 apart.
SCORES = np.array([[1.0, 1.0 + 1 / 512]], np.float32)


def two_scores() -> DefendedModel:
    """The brightness of one pixel times `SCORES`, on the way to an identity as the last layer."""
    inputs = keras.Input((1, 1, 1))
    scores, identity = (keras.layers.Dense(2, use_bias=False) for _ in range(2))
    model = keras.Model(inputs, identity(scores(keras.layers.Flatten()(inputs))))
    scores.set_weights([SCORES])
    identity.set_weights([np.eye(2)])
    return DefendedModel(model)


def test_classes_that_only_float32_tells_apart_are_counted():
    # Black: both logits are 0, class 0 in either. White: 1 and 1 + 1/512, equal in bfloat16.
    images = np.array([0.0, 1.0, 1.0, 1.0], np.float32).reshape(4, 1, 1, 1)
    difference = compare_precision(two_scores(), "bfloat16", images, np.array([0, 1, 1, 0]), 3)
    assert (difference.precision, difference.examples) == ("bfloat16", 4)
    assert difference.disagreeing_labels == 3
    assert difference.max_logit_difference == 1 / 512
    assert (difference.accuracy, difference.float32_accuracy) == (0.5, 0.75)


def test_float32_differs_in_nothing_from_itself():
    images = np.ones((2, 1, 1, 1), np.float32)
    difference = compare_precision(two_scores(), "float32", images, np.array([1, 1]))
    assert (difference.disagreeing_labels, difference.max_logit_difference) == (0, 0.0)
    assert (difference.accuracy, difference.float32_accuracy) == (1.0, 1.0)


@pytest.mark.parametrize(("images", "labels"), [(0, 0), (3, 2)])
def test_every_image_needs_a_label(images, labels):
    with pytest.raises(SfmError, match=f"on {images} images with {labels} labels; expected"):
        compare_precision(
            two_scores(), "bfloat16", np.ones((images, 1, 1, 1), np.float32), np.zeros(labels)
        )


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
