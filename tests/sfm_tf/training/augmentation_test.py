"""Tests of the augmentation against the enumeration of every shift and mirror image."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.training.augmentation import augment

_COUNT = 512


def _images(height=8, width=16, channels=1):
    one = np.random.default_rng(0).uniform(0.1, 1.0, (1, height, width, channels))
    return np.repeat(one, _COUNT, axis=0).astype(np.float32)


def _shifts(image, vertical, horizontal):
    """Maps each shift's name to the image shifted, black moving in, by plain slicing."""
    height, width, _ = image.shape
    padded = np.pad(image, ((vertical, vertical), (horizontal, horizontal), (0, 0)))
    return {
        padded[top : top + height, left : left + width].tobytes(): (top, left)
        for top in range(2 * vertical + 1)
        for left in range(2 * horizontal + 1)
    }


def test_crop_shifts_by_up_to_an_eighth_of_the_side_each_shift_as_often():
    images = _images()
    shifts = _shifts(images[0], 1, 2)
    cropped = augment(tf.constant(images), "crop", tf.constant([1, 2])).numpy()
    counts = collections.Counter(shifts[image.tobytes()] for image in cropped)
    assert set(counts) == set(shifts.values())
    assert len(counts) == 15
    expected = _COUNT / 15
    assert max(counts.values()) < expected + 5 * np.sqrt(expected)


def test_crop_pads_32_pixels_by_the_customary_4():
    images = _images(32, 32, 3)[:64]
    shifts = _shifts(images[0], 4, 4)
    cropped = augment(tf.constant(images), "crop", tf.constant([0, 0])).numpy()
    offsets = np.array([shifts[image.tobytes()] for image in cropped])
    assert offsets.min() == 0
    assert offsets.max() == 8


def test_flip_mirrors_half_of_the_images_left_to_right():
    images = _images()
    both = {
        **dict.fromkeys(_shifts(images[0], 1, 2), False),
        **dict.fromkeys(_shifts(images[0, :, ::-1], 1, 2), True),
    }
    changed = augment(tf.constant(images), "crop_flip", tf.constant([3, 4])).numpy()
    share = np.mean([both[image.tobytes()] for image in changed])
    assert 0.4 < share < 0.6


def test_none_changes_nothing():
    np.testing.assert_array_equal(augment(_images(), "none", tf.constant([0, 0])), _images())


def test_seed_alone_decides():
    images = tf.constant(_images())
    first, second = (augment(images, "crop_flip", tf.constant([7, 8])).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, augment(images, "crop_flip", tf.constant([7, 9])))
    assert not np.array_equal(first, augment(images, "crop_flip", tf.constant([6, 8])))


def test_is_the_same_inside_a_dataset_of_unknown_batch_size():
    images = _images()[:100]
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(100)
    dataset = dataset.map(lambda batch: augment(batch, "crop_flip", tf.constant([1, 1])))
    np.testing.assert_array_equal(
        next(iter(dataset)), augment(tf.constant(images), "crop_flip", tf.constant([1, 1]))
    )


def test_unknown_name_lists_the_known_ones():
    message = r"Unknown augmentation 'flip'; expected one of none, crop, crop_flip\."
    with pytest.raises(SfmError, match=message):
        augment(tf.constant(_images()), "flip", tf.constant([0, 0]))


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
