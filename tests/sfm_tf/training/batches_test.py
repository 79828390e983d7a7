"""Tests of the batches: what is in an epoch, and that it depends on seed and number alone."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.training.batches import (
    augment,
    evaluation_batches,
    training_batches,
    training_steps,
)

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


def _data(count):
    """Images that are each filled with their own label over 255."""
    labels = np.arange(count)
    images = np.ones((count, 4, 4, 1), np.float32) * labels[:, None, None, None] / 255
    return images.astype(np.float32), labels


def _epoch(count=50, batch_size=8, augmentation="none", seed=1, epoch=0):
    dataset = training_batches(
        *_data(count), batch_size=batch_size, augmentation=augmentation, seed=seed, epoch=epoch
    )
    return [(images.numpy(), labels.numpy()) for images, labels in dataset]


def _order(**options):
    return np.concatenate([labels for _, labels in _epoch(**options)])


@pytest.mark.parametrize("seed", [1, 2**31 - 1])
def test_epoch_is_a_shuffle_without_repetition_of_images_with_their_labels(seed):
    order = _order(seed=seed)
    assert len(order) == len(set(order)) == 48
    assert not np.array_equal(order, np.sort(order))
    for images, labels in _epoch(seed=seed):
        np.testing.assert_allclose(images[:, 0, 0, 0] * 255, labels, atol=1e-4)


@pytest.mark.parametrize(("count", "sizes"), [(5, [5]), (8, [8]), (9, [8]), (50, [8] * 6)])
def test_batches_are_full_where_there_is_more_than_one(count, sizes):
    assert [len(labels) for _, labels in _epoch(count=count)] == sizes
    assert training_steps(count, 8) == len(sizes)


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 1}])
def test_another_seed_or_number_gives_another_order(other):
    assert not np.array_equal(_order(), _order(**other))


def test_batches_of_an_epoch_are_augmented_differently():
    images = np.tile(np.random.default_rng(0).uniform(size=(1, 8, 8, 1)), (64, 1, 1, 1))
    dataset = training_batches(
        images.astype(np.float32),
        np.zeros(64, np.int64),
        batch_size=32,
        augmentation="crop",
        seed=0,
        epoch=0,
    )
    first, second = (batch.numpy() for batch, _ in dataset)
    assert not np.array_equal(first, second)


def test_evaluation_sees_every_image_once_in_order():
    images, labels = _data(21)
    batches = list(evaluation_batches(images, labels, 8))
    assert [len(batch_labels) for _, batch_labels in batches] == [8, 8, 5]
    np.testing.assert_array_equal(tf.concat([batch for batch, _ in batches], 0), images)
    np.testing.assert_array_equal(tf.concat([batch for _, batch in batches], 0), labels)


def _augmented_epoch(images, labels, **options):
    batches = training_batches(
        images, labels, batch_size=8, augmentation="crop_flip", seed=1, epoch=2, **options
    )
    return [(batch.numpy(), numbers.numpy()) for batch, numbers in batches]


def _larger():
    generator = np.random.default_rng(0)
    return generator.uniform(size=(35, 8, 8, 1)).astype(np.float32), np.arange(35)


def test_rest_of_an_epoch_is_what_the_whole_epoch_has_there():
    whole = _augmented_epoch(*_larger())
    for first in range(5):
        rest = _augmented_epoch(*_larger(), first_step=first)
        assert len(rest) == 4 - first
        for found, expected in zip(rest, whole[first:], strict=True):
            for pair in zip(found, expected, strict=True):
                np.testing.assert_array_equal(*pair)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_parts_of_all_devices_are_the_whole_batches(processes):
    own = 4 // processes
    contexts = [tf.distribute.InputContext(processes, process, 4) for process in range(processes)]
    parts = [_augmented_epoch(*_larger(), first_step=1, context=each) for each in contexts]
    for step, expected in enumerate(_augmented_epoch(*_larger(), first_step=1)):
        shares = [part[step * own + index] for part in parts for index in range(own)]
        for position, values in enumerate(expected):
            joined = np.concatenate([share[position] for share in shares])
            np.testing.assert_array_equal(joined, values)
