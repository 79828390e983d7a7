import itertools
from fractions import Fraction

import cv2
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.shrinking import random_placements, shrink_and_pad

PAPER_SHARE = tf.constant(299 / 330)


def _images(count, height, width, channels=3):
    # No value is 0, so that padding can be told from pixels.
    shape = (count, height, width, channels)
    return np.random.default_rng(0).uniform(0.1, 1.0, shape).astype(np.float32)


def _nearest(index, size, full):
    """The pixel whose centre is nearest to that of pixel `index` of `size`, or the later of two."""
    centre = (index + Fraction(1, 2)) * Fraction(full, size)
    return min(range(full), key=lambda pixel: (abs(pixel + Fraction(1, 2) - centre), -pixel))


def _by_enumeration(image, size, offset):
    padded = np.zeros_like(image)
    rows, columns = (
        [_nearest(i, part, full) for i in range(part)]
        for part, full in zip(size.tolist(), image.shape[:2], strict=True)
    )
    region = np.s_[offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]
    padded[region] = image[np.ix_(rows, columns)]
    return padded


def _by_opencv(image, size, offset):
    padded = np.zeros_like(image)
    region = np.s_[offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]
    shape = (size[1].item(), size[0].item())
    padded[region] = cv2.resize(image, shape, interpolation=cv2.INTER_NEAREST_EXACT)
    return padded


def _placements(full_size):
    """Every size along either axis, with the first and the last place and one between."""
    for size in itertools.product(*(range(1, full + 1) for full in full_size)):
        rest = [full - part for full, part in zip(full_size, size, strict=True)]
        yield from {(size, (0, 0)), (size, tuple(rest)), (size, (rest[0] // 2, 0))}


def _check_all(images, placements, reference):
    sizes, offsets = (np.array(part, np.int32) for part in zip(*placements, strict=True))
    shown = shrink_and_pad(tf.constant(images), tf.constant(sizes), tf.constant(offsets))
    expected = [reference(*case) for case in zip(images, sizes, offsets, strict=True)]
    np.testing.assert_array_equal(shown, np.array(expected))


@pytest.mark.parametrize("full_size", [(8, 8), (5, 7), (12, 3)])
def test_shows_the_nearest_pixels_at_every_size(full_size):
    placements = list(_placements(full_size))
    _check_all(_images(len(placements), *full_size), placements, _by_enumeration)


@pytest.mark.parametrize("full_size", [(5, 7), (9, 3)])
def test_shows_what_opencv_shows(full_size):
    """At odd sizes no two pixels are equally near; of two, OpenCV may take the earlier."""
    placements = list(_placements(full_size))
    _check_all(_images(len(placements), *full_size), placements, _by_opencv)


@pytest.mark.parametrize(("full", "smallest"), [(32, 29), (64, 58)])
def test_shows_the_nearest_pixels_at_the_sizes_of_the_datasets(full, smallest):
    sizes = range(smallest, full)
    placements = [((size, size), (full - size, (full - size) // 2)) for size in sizes]
    _check_all(_images(len(placements), full, full), placements, _by_enumeration)


def test_the_full_size_is_the_image_itself():
    images = tf.constant(_images(2, 32, 30))
    sizes = tf.constant([[32, 30], [32, 30]])
    np.testing.assert_array_equal(shrink_and_pad(images, sizes, tf.zeros_like(sizes)), images)


def test_the_gradient_reaches_exactly_the_pixels_that_are_shown():
    images = tf.constant(_images(1, 8, 8, 1))
    weights = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    expected = np.zeros((8, 8), np.float32)
    for row, column in itertools.product(range(5), range(7)):
        expected[_nearest(row, 5, 8), _nearest(column, 7, 8)] += weights[row + 2, column + 1]
    with tf.GradientTape() as tape:
        tape.watch(images)
        shown = shrink_and_pad(images, tf.constant([[5, 7]]), tf.constant([[2, 1]]))
        total = tf.reduce_sum(shown[..., 0] * weights)
    np.testing.assert_allclose(tape.gradient(total, images)[0, ..., 0], expected, atol=1e-7)
    assert np.count_nonzero(expected) == 35


@pytest.mark.parametrize(
    ("full", "smallest", "largest"), [(8, 7, 7), (28, 25, 27), (32, 29, 31), (64, 58, 63)]
)
def test_sizes_follow_the_ratios_of_the_paper(full, smallest, largest):
    uniforms = np.full((1000, 3), 0.5, np.float32)
    uniforms[:, 0] = np.arange(1000) / 1000
    sizes, _ = random_placements((full, full), PAPER_SHARE, tf.constant(uniforms))
    found, counts = np.unique(sizes[:, 0], return_counts=True)
    assert found.tolist() == list(range(smallest, largest + 1))
    np.testing.assert_allclose(counts, 1000 / len(found), atol=1)
    np.testing.assert_array_equal(sizes[:, 0], sizes[:, 1])


def test_every_place_is_equally_likely():
    grid = (np.arange(60, dtype=np.float32) + 0.5) / 60
    uniforms = np.array([(0.0, *pair) for pair in itertools.product(grid, grid)], np.float32)
    sizes, offsets = random_placements((32, 32), PAPER_SHARE, tf.constant(uniforms))
    assert np.unique(sizes).tolist() == [29]
    places, counts = np.unique(offsets, axis=0, return_counts=True)
    assert places.tolist() == [list(pair) for pair in itertools.product(range(4), range(4))]
    assert counts.tolist() == [225] * 16


@pytest.mark.parametrize("full_size", [(1, 1), (2, 1), (8, 9), (33, 64)])
@pytest.mark.parametrize("share", [0.01, 0.5, 299 / 330, 0.999])
def test_the_ends_of_the_uniform_interval_stay_inside(full_size, share):
    ends = (0.0, 1.0 - 2.0**-23)
    uniforms = tf.constant(list(itertools.product(ends, ends, ends)), tf.float32)
    sizes, offsets = (t.numpy() for t in random_placements(full_size, tf.constant(share), uniforms))
    assert (sizes >= 1).all()
    assert (offsets >= 0).all()
    assert (sizes + offsets <= full_size).all()
    assert ((sizes < full_size) | (np.array(full_size) == 1)).all()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
