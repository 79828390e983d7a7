import math

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.compiled_attack import AttackBatch
from sfm_tf.attacks.square_proposals import PROPOSALS, make_bump

SHAPE = (9, 11, 3)
COUNT = 6


def _batch(low=0.3, high=0.7, shape=SHAPE, mask=None):
    images = np.random.default_rng(0).uniform(low, high, (COUNT, *shape)).astype(np.float32)
    mask = np.ones_like(images) if mask is None else np.broadcast_to(mask, images.shape)
    seeds = np.stack([np.full(COUNT, 7), np.arange(COUNT)], axis=1).astype(np.int32)
    arrays = (images, np.zeros(COUNT, np.int64), mask.astype(np.float32), seeds)
    return AttackBatch(*map(tf.constant, arrays))


def _numbers(norm, shape=SHAPE):
    count = PROPOSALS[norm].number_count + shape[2]
    return np.random.default_rng(1).random((COUNT, count)).astype(np.float32)


def _perturbed(batch, norm, epsilon):
    change = np.random.default_rng(2).normal(size=batch.images.shape)
    sizes = np.linalg.norm(change.reshape(COUNT, -1), ord=norm, axis=1)
    scale = epsilon * np.linspace(0.5, 1.0, COUNT) / sizes
    change = (change * scale[:, None, None, None]).astype(np.float32)
    return tf.clip_by_value(batch.images + change, 0.0, 1.0)


def _propose(norm, side, best, batch, epsilon, numbers=None):
    numbers = _numbers(norm, batch.images.shape[1:]) if numbers is None else numbers
    return (
        PROPOSALS[norm]
        .propose(tf.constant(numbers), tf.constant(side), best, batch, tf.constant(epsilon))
        .numpy()
    )


def _norms(change):
    return np.linalg.norm(np.reshape(change, (COUNT, -1)).astype(np.float64), axis=1)


def _hill(rows, columns):
    """Andriushchenko et al. 2020, section 3.4, pixel by pixel with the paper's names."""
    n = max(rows // 2, columns // 2)
    hill = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            distance = max(abs(i - rows // 2), abs(j - columns // 2))
            hill[i, j] = sum(1 / (n + 1 - k) ** 2 for k in range(n - distance + 1))
    return hill / np.linalg.norm(hill)


def _bump(side):
    bump = np.concatenate([_hill(side // 2, side), -_hill(side - side // 2, side)])
    return bump / np.linalg.norm(bump)


@pytest.mark.parametrize("side", [2, 3, 5, 7])
def test_a_bump_is_the_two_hills_of_the_paper(side):
    expected = np.zeros((8, 8))
    expected[:side, :side] = _bump(side)
    np.testing.assert_allclose(make_bump(tf.constant(side), 8), expected, atol=1e-6)


def test_the_smallest_bump_is_one_pixel():
    np.testing.assert_array_equal(make_bump(tf.constant(1), 2), [[-1, 0], [0, 0]])


def _moved_by_the_book(image, best, numbers, side, epsilon):
    """Algorithm 3 of Andriushchenko et al. 2020 for one image, channel by channel."""
    height, width, channels = image.shape
    r1, c1, r2, c2 = (
        int(number * (size - side + 1))
        for number, size in zip(numbers, (height, width, height, width), strict=False)
    )
    nu = best - image
    in_first, in_second = np.zeros((height, width), bool), np.zeros((height, width), bool)
    in_first[r1 : r1 + side, c1 : c1 + side] = True
    in_second[r2 : r2 + side, c2 : c2 + side] = True
    unused = max(epsilon**2 - np.sum(nu**2), 0.0) / channels
    eta = _bump(side) if numbers[4] < 0.5 else _bump(side).T
    result = nu.copy()
    result[in_second] = 0.0
    for channel in range(channels):
        sign = -1.0 if numbers[5 + channel] < 0.5 else 1.0
        old = nu[r1 : r1 + side, c1 : c1 + side, channel]
        new = sign * eta + old / np.linalg.norm(old)
        available = np.sqrt(np.sum(nu[in_first | in_second, channel] ** 2) + unused)
        window = available * new / np.linalg.norm(new)
        result[r1 : r1 + side, c1 : c1 + side, channel] = window
    return np.clip(image + epsilon * result / np.linalg.norm(result), 0.0, 1.0)


@pytest.mark.parametrize("side", [3, 5, 9])
def test_an_l2_proposal_moves_the_norm_as_the_paper_says(side):
    batch = _batch()
    best = _perturbed(batch, 2, 1.5)
    moved = _propose(2, side, best, batch, 1.5)
    arguments = (batch.images.numpy().astype(np.float64), best.numpy().astype(np.float64))
    expected = [
        _moved_by_the_book(*values, side, 1.5)
        for values in zip(*arguments, _numbers(2), strict=True)
    ]
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_an_l2_proposal_uses_the_whole_radius_where_no_pixel_is_clipped():
    batch = _batch()
    moved = _propose(2, 5, _perturbed(batch, 2, 0.3), batch, 0.3)
    np.testing.assert_allclose(_norms(moved - batch.images), 0.3, rtol=1e-5)


def test_an_l_infinity_proposal_takes_a_square_to_the_ends_of_the_ball():
    batch = _batch()
    best = batch.images + 0.0625
    moved = _propose("inf", 4, best, batch, 0.0625)
    for image, numbers, before in zip(moved, _numbers("inf"), batch.images.numpy(), strict=True):
        row, column = int(numbers[0] * 6), int(numbers[1] * 8)
        expected = np.full(SHAPE, 0.0625)
        expected[row : row + 4, column : column + 4] *= np.where(numbers[2:] < 0.5, -1, 1)
        np.testing.assert_allclose(image - before, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (2, 4, 1), (5, 5, 2)])
@pytest.mark.parametrize("norm", [math.inf, 2])
def test_all_proposals_are_allowed_images(norm, shape):
    mask = np.random.default_rng(3).random((1, *shape)) < 0.7
    batch = _batch(0.0, 1.0, shape, mask)
    sides = PROPOSALS[norm].fit_sides(np.array([0, 1, 4, 100]), min(shape[:2]))
    assert 1 <= sides.min() <= sides.max() <= min(shape[:2])
    moved = [PROPOSALS[norm].begin(batch, batch.seeds, tf.constant(0.4)).numpy()]
    for side in sides.tolist():
        moved.append(_propose(norm, side, tf.constant(moved[-1]), batch, 0.4))
    for images in moved:
        assert images.min() >= 0.0
        assert images.max() <= 1.0
        change = images - batch.images.numpy()
        assert np.all(change[~np.broadcast_to(mask, change.shape)] == 0.0)
        sizes = np.linalg.norm(change.reshape(COUNT, -1), ord=norm, axis=1)
        assert sizes.max() <= 0.4 + 1e-6


@pytest.mark.parametrize(("edge", "tile", "tiles"), [(32, 6, 5), (28, 5, 5), (8, 1, 8)])
def test_the_first_l2_proposal_is_a_grid_of_bumps(edge, tile, tiles):
    """All bumps have one norm; at 32 and 28 pixels the authors' grid begins at pixel 1, too."""
    batch = _batch(shape=(edge, edge, 1))
    begun = PROPOSALS[2].begin(batch, batch.seeds, tf.constant(0.5)).numpy() - batch.images.numpy()
    first = (edge - tile * tiles) // 2
    inner = begun[:, first : first + tile * tiles, first : first + tile * tiles]
    bumps = inner.reshape(COUNT, tiles, tile, tiles, tile).transpose(0, 1, 3, 2, 4)
    np.testing.assert_allclose(np.linalg.norm(bumps, axis=(3, 4)), 0.5 / tiles, rtol=1e-4)
    np.testing.assert_allclose(_norms(begun), 0.5, rtol=1e-5)
    np.testing.assert_allclose(_norms(inner), 0.5, rtol=1e-5)
    expected = _bump(tile) if tile > 1 else np.array([[1.0]])
    shapes = [sign * side for sign in (1, -1) for side in (expected, expected.T)]
    distances = [np.abs(bumps * tiles / 0.5 - shape).max(axis=(3, 4)) for shape in shapes]
    assert np.min(distances, axis=0).max() < 1e-4
    kinds = np.argmin(distances, axis=0)
    assert len(np.unique(kinds)) == (4 if tile > 1 else 2)
    assert (kinds[0] != kinds[1]).any()


def test_windows_for_bumps_have_odd_sides_of_at_least_three():
    """As in the authors' code, which has no image of fewer than five pixels."""
    fit = PROPOSALS[2].fit_sides
    assert fit(np.array([0, 1, 3, 4, 5, 28, 29, 40]), 32).tolist() == [3, 3, 3, 5, 5, 29, 29, 31]


def test_windows_reach_every_place():
    batch = _batch(shape=(5, 5, 1))
    reached = np.zeros((5, 5), bool)
    for number in (0.0, 1.0 - 2.0**-23):
        numbers = np.full((COUNT, 3), number, np.float32)
        moved = _propose("inf", 3, batch.images, batch, 0.1, numbers)
        reached |= np.abs(moved - batch.images.numpy())[0, ..., 0] > 0.05
    assert reached[0, 0]
    assert reached[4, 4]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
