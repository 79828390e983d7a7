import math

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.input_gradients import usable_gradient
from sfm_tf.errors import SfmError


def test_only_finite_entries_of_changeable_pixels_are_left():
    gradient = tf.constant([1.0, math.nan, math.inf, -math.inf, -2.0, 3.0])
    mask = tf.constant([1.0, 1.0, 1.0, 1.0, 0.5, 0.0])
    np.testing.assert_array_equal(usable_gradient(gradient, mask), [1, 0, 0, 0, -2, 0])


def test_a_model_without_a_gradient_is_reported():
    with pytest.raises(SfmError, match="no gradient with respect to its input; give each operat"):
        usable_gradient(None, tf.ones(1))


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
