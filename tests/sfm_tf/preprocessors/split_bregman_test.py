import math

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from skimage.restoration import denoise_tv_bregman

from sfm_tf.preprocessors.split_bregman import fill_dropped, solve_total_variation

# What the default tolerance leaves for the worst pixel.
WORST_ERROR = 0.01


def _natural(size, channels):
    photographs = sklearn.datasets.load_sample_images().images
    crops = [
        photograph[150 : 150 + 4 * size : 4, 250 : 250 + 4 * size : 4] for photograph in photographs
    ]
    noise = np.random.default_rng(0).integers(-8, 9, (2, size, size, 3))
    return np.clip(np.stack(crops) + noise, 0, 255)[..., :channels] / 255.0


def _solve(images, kept, *settings):
    arguments = (tf.constant(values, tf.float32) for values in (images, kept))
    return solve_total_variation(*arguments, *settings).numpy()


def _kept(shape, share=0.5):
    return np.random.default_rng(1).random(shape) < share


def _skimage(images, weight):
    settings = {"max_num_iter": 1000, "eps": 1e-6, "channel_axis": -1}
    solutions = [denoise_tv_bregman(image, 1.0 / weight, **settings) for image in images]
    return np.reshape(solutions, images.shape)


def _skimage_without_frame(images, weight):
    """Keeps the frame of pixels that scikit-image holds fixed away by mirrored margins."""
    margins = ((0, 0), (8, 8), (8, 8), (0, 0))
    return _skimage(np.pad(images, margins, mode="symmetric"), weight)[:, 8:-8, 8:-8]


def _guo(image, kept, weight, iterations):
    """The loops of Guo et al.'s code for one channel, but for borders, where it divides by 4."""
    penalty = 2.0 / weight
    rows, columns = image.shape
    beside = {
        (r, c): [
            (y, x)
            for y, x in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1))
            if 0 <= y < rows and 0 <= x < columns
        ]
        for r in range(rows)
        for c in range(columns)
    }
    u = (image * kept).tolist()
    image, kept = image.tolist(), kept.tolist()
    flow = np.zeros((rows, columns))
    multipliers = np.zeros((2, rows, columns))
    for _ in range(iterations):
        for _ in range(10):
            for (r, c), others in beside.items():
                total = flow[r, c] + sum(u[y][x] for y, x in others)
                fidelity = kept[r][c] / weight
                u[r][c] = (penalty * total + fidelity * image[r][c]) / (
                    fidelity + penalty * len(others)
                )
        array = np.array(u)
        gradients = [np.diff(array, axis=a, append=np.take(array, [-1], axis=a)) for a in (0, 1)]
        wanted = np.array(gradients) + multipliers
        length = np.sqrt(np.sum(wanted**2, axis=0))
        shrunk = wanted * (length * penalty / (length * penalty + 1.0))
        multipliers = wanted - shrunk
        down, right = shrunk - multipliers
        flow = -down - right
        flow[1:] += down[:-1]
        flow[:, 1:] += right[:, :-1]
    return np.array(u)


def _objective(solutions, images, kept, weight):
    down = np.diff(solutions, axis=1, append=solutions[:, -1:])
    right = np.diff(solutions, axis=2, append=solutions[:, :, -1:])
    misfit = np.sum(kept * (solutions - images) ** 2, axis=(1, 2, 3)) / 2.0
    return misfit + weight * np.sum(np.sqrt(down**2 + right**2), axis=(1, 2, 3))


@pytest.mark.parametrize(("channels", "weight"), [(1, 0.03), (3, 0.1)])
def test_agrees_with_scikit_image_where_everything_is_kept(channels, weight):
    images = _natural(32, channels)
    expected = _skimage_without_frame(images, weight)
    everything = np.ones_like(images)
    assert np.abs(images - expected).max() > 5.0 * WORST_ERROR
    # Forward differences make a mirrored margin differ a little from none.
    inside = (slice(None), slice(2, -2), slice(2, -2))
    for settings, error in (((), WORST_ERROR), ((1e-5,), 1e-3)):
        solutions = _solve(images, everything, weight, *settings)
        np.testing.assert_allclose(solutions[inside], expected[inside], atol=error)


@pytest.mark.parametrize("weight", [0.03, 0.1])
def test_objective_is_as_low_as_that_of_scikit_image(weight):
    images = _natural(32, 3)
    everything = np.ones_like(images)
    solutions = [_skimage(images, weight), _skimage_without_frame(images, weight)]
    theirs, best = (_objective(each, images, everything, weight) for each in solutions)
    ours = _objective(_solve(images, everything, weight), images, everything, weight)
    assert (ours <= theirs).all()
    assert (ours <= 1.005 * best).all()


@pytest.mark.parametrize(("share", "weight"), [(0.5, 0.03), (0.8, 0.1)])
def test_agrees_with_the_converged_loops_of_guo(share, weight):
    images = _natural(8, 1)[:1]
    kept = _kept(images.shape, share)
    expected = _guo(images[0, :, :, 0], kept[0, :, :, 0], weight, 400)
    solutions = _solve(images, kept, weight, 1e-5)
    np.testing.assert_allclose(solutions[0, :, :, 0], expected, atol=2e-3)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_image_stays_constant(value, share):
    images = np.full((2, 16, 16, 3), value)
    solutions = _solve(images, _kept(images.shape, share), 0.03)
    np.testing.assert_allclose(solutions, images, atol=1e-4)


def test_what_was_dropped_does_not_matter():
    images = _natural(16, 3)
    kept = _kept(images.shape)
    other_images = np.where(kept, images, 0.5)
    np.testing.assert_array_equal(_solve(images, kept, 0.03), _solve(other_images, kept, 0.03))


def test_channels_are_independent_but_for_when_they_stop():
    images = _natural(8, 3)
    kept = _kept(images.shape)
    together = _solve(images, kept, 0.03)
    alone = [_solve(images[..., c : c + 1], kept[..., c : c + 1], 0.03) for c in range(3)]
    np.testing.assert_allclose(together, np.concatenate(alone, axis=-1), atol=WORST_ERROR)


@pytest.mark.parametrize(("size", "weight"), [(8, 0.003), (32, 0.3)])
def test_stays_within_the_range_of_the_images(size, weight):
    images = _natural(size, 3)
    solutions = _solve(images, _kept(images.shape, 0.3), weight)
    assert solutions.min() > images.min() - 1e-3
    assert solutions.max() < images.max() + 1e-3


def test_nothing_kept_gives_finite_values():
    assert np.isfinite(_solve(np.ones((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)), 0.03)).all()


def test_filling_takes_the_smallest_diamond_that_holds_anything_kept():
    values, kept = np.zeros((5, 9, 1)), np.zeros((5, 9, 1))
    kept[2, 2], values[2, 2] = 1.0, 0.8
    kept[2, 4], values[2, 4] = 1.0, 0.4
    filled = fill_dropped(tf.constant(values), tf.constant(kept)).numpy()[:, :, 0]
    expected = {(2, 2): 0.8, (2, 3): 0.6, (1, 1): 0.8, (1, 5): 0.4, (4, 3): 0.6, (2, 8): 0.4}
    for position, value in expected.items():
        assert math.isclose(filled[position], value, rel_tol=1e-6), position


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
