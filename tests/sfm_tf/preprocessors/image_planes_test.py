import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.image_planes import (
    differences,
    from_planes,
    neighbors,
    to_planes,
    transposed_differences,
)


def _random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("batch", [0, 3])
def test_images_come_back_from_planes(batch):
    images = _random(batch, 4, 5, 3)
    planes = to_planes(tf.constant(images))
    assert planes.shape == (4, 5, batch * 3)
    np.testing.assert_array_equal(from_planes(planes, 3), images)


def test_channels_of_an_image_lie_together():
    images = _random(2, 4, 5, 3)
    np.testing.assert_array_equal(to_planes(tf.constant(images))[:, :, 3:], images[1])


def test_other_shapes_are_rejected():
    with pytest.raises(SfmError, match=r"expected \(batch, height, width, channels\)"):
        to_planes(tf.zeros([8, 8, 1]))


def test_neighbors_are_the_shifted_image_with_zeros_outside():
    planes = _random(4, 5, 2)
    padded = np.pad(planes, ((1, 1), (1, 1), (0, 0)))
    expected = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    for neighbor, shifted in zip(neighbors(tf.constant(planes)), expected, strict=True):
        np.testing.assert_array_equal(neighbor, shifted)


def test_differences_are_those_to_the_next_pixel_and_zero_at_the_end():
    planes = _random(4, 5, 2)
    down, right = differences(tf.constant(planes))
    np.testing.assert_array_equal(down, np.diff(planes, axis=0, append=planes[-1:]))
    np.testing.assert_array_equal(right, np.diff(planes, axis=1, append=planes[:, -1:]))


def test_transposed_differences_are_the_transpose():
    planes, down, right = _random(3, 4, 5, 2)
    down[-1], right[:, -1] = 0.0, 0.0
    forwards = np.vdot(differences(tf.constant(planes)), (down, right))
    backwards = np.vdot(planes, transposed_differences(tf.constant(down), tf.constant(right)))
    np.testing.assert_allclose(forwards, backwards, rtol=1e-5)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
