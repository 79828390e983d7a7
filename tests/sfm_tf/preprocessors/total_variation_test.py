import math

import cv2
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from skimage.restoration import denoise_tv_bregman

from sfm_tf.preprocessors.total_variation import (
    _fill_dropped,
    minimise_total_variation,
    minimise_total_variation_smoothly,
    solve_total_variation,
)

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
    filled = _fill_dropped(tf.constant(values), tf.constant(kept)).numpy()[:, :, 0]
    expected = {(2, 2): 0.8, (2, 3): 0.6, (1, 1): 0.8, (1, 5): 0.4, (4, 3): 0.6, (2, 8): 0.4}
    for position, value in expected.items():
        assert math.isclose(filled[position], value, rel_tol=1e-6), position


FUNCTIONS = [minimise_total_variation, minimise_total_variation_smoothly]


def _smooth_images(batch, size, channels):
    noise = np.random.default_rng(size).random((batch, size, size, channels))
    blurred = [cv2.GaussianBlur(image, (0, 0), 3.0) for image in noise]
    blurred = np.reshape(blurred, noise.shape)
    low, high = blurred.min(), blurred.max()
    return ((blurred - low) / (high - low)).astype(np.float32)


def _seeds(batch):
    return np.random.default_rng(7).integers(0, 2**31 - 1, (batch, 2)).astype(np.int32)


def _total_variation_kept(images, seeds, percent):
    draws = [tf.random.stateless_uniform(images.shape[1:], seed).numpy() for seed in seeds]
    return np.stack(draws) >= percent / 100


def _graph(function, shape, *parameters):
    signature = [tf.TensorSpec([None, *shape[1:]]), tf.TensorSpec([None, 2], tf.int32)]
    return tf.function(lambda *inputs: function(*inputs, *parameters), input_signature=signature)


def _error(images, expected):
    return np.sqrt(np.mean((images - expected) ** 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32])
def test_paints_what_was_dropped(channels, size):
    images, seeds = _smooth_images(4, size, channels), _seeds(4)
    painted = minimise_total_variation(images, seeds, 50, 30).numpy()
    dropped = ~_total_variation_kept(images, seeds, 50)
    assert 0.4 < dropped.mean() < 0.6
    assert _error(painted, images) < 0.3 * _error(np.where(dropped, 0.0, images), images)
    assert _error(painted[dropped], images[dropped]) < 0.1


def test_removes_noise():
    images, seeds = _smooth_images(4, 32, 3), _seeds(4)
    noise = np.random.default_rng(1).normal(0.0, 0.1, images.shape)
    noisy = np.clip(images + noise, 0.0, 1.0).astype(np.float32)
    painted = minimise_total_variation(noisy, seeds, 50, 30).numpy()
    assert _error(painted, images) < 0.7 * _error(noisy, images)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_of_each_channel_are_dropped_independently(function):
    images, seeds = _smooth_images(2, 8, 3), _seeds(2)
    with tf.GradientTape() as tape:
        variable = tf.Variable(images)
        smooth = minimise_total_variation_smoothly(variable, seeds, 50, 30)
    reached = np.asarray(tape.gradient(smooth, variable)) != 0.0
    np.testing.assert_array_equal(reached, _total_variation_kept(images, seeds, 50))
    assert (reached.any(axis=-1) & ~reached.all(axis=-1)).any()
    changed = np.where(reached, images, 1.0 - images)
    results = (function(values, seeds, 50, 30) for values in (changed, images))
    np.testing.assert_allclose(*results, atol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_black_is_dropped_as_often_as_other_values(function):
    images, seeds = np.zeros((1, 8, 8, 1), np.float32), _seeds(1)
    images[:, 2:6, 2:6] = 1.0
    without = function(
        np.where(_total_variation_kept(images, seeds, 50), images, 1.0), seeds, 50, 30
    )
    np.testing.assert_allclose(function(images, seeds, 50, 30), without, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "channels", "tolerance"),
    [(FUNCTIONS[0], 1, 0.0), (FUNCTIONS[0], 3, 0.0), (FUNCTIONS[1], 3, 1e-5)],
)
def test_result_does_not_depend_on_the_rest_of_the_batch(function, channels, tolerance):
    # Large enough that TensorFlow splits a batch among its threads, at a place that depends on it.
    images, seeds = _smooth_images(20, 32, channels), _seeds(20)
    images[5] = np.random.default_rng(0).random(images[5].shape)
    graph = _graph(function, images.shape, 50, 30)
    together = graph(images, seeds).numpy()
    for part in (slice(0, 1), slice(3, 6), slice(19, 3, -1), slice(0, 0)):
        alone = graph(images[part], seeds[part])
        np.testing.assert_allclose(alone, together[part], rtol=0.0, atol=tolerance)
    # Eagerly, draws for no image once had no shape.
    assert function(images[:0], seeds[:0], 50, 30).shape == images[:0].shape


@pytest.mark.parametrize(("percent", "thousandths"), [(0, 1000), (99, 1)])
def test_extreme_parameters_give_images(percent, thousandths):
    images = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)
    parameters = (percent, thousandths)
    solve = _graph(minimise_total_variation, images.shape, *parameters)
    smooth = minimise_total_variation_smoothly(images, _seeds(2), *parameters)
    for painted in (solve(images, _seeds(2)).numpy(), smooth.numpy()):
        assert painted.dtype == np.float32
        assert np.isfinite(painted).all()
        assert painted.min() >= 0.0
        assert painted.max() <= 1.0 + 1e-6


@pytest.mark.parametrize("percent", [0, 50])
@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_version_is_near_the_solution(channels, percent):
    images, seeds = _smooth_images(4, 32, channels), _seeds(4)
    arguments = (images, seeds, percent, 30)
    painted = minimise_total_variation(*arguments).numpy()
    smooth = minimise_total_variation_smoothly(*arguments).numpy()
    assert _error(smooth, painted) < 0.5 * _error(painted, images)


def test_smooth_gradient_is_the_numerical_derivative_and_reaches_neighbours():
    images = tf.constant(_smooth_images(1, 8, 1), tf.float64)
    direction = np.random.default_rng(0).standard_normal(images.shape)

    def center(step):
        moved = tf.cast(images + step * direction, tf.float32)
        return minimise_total_variation_smoothly(moved, _seeds(1), 50, 30)[0, 4, 4, 0]

    with tf.GradientTape() as tape:
        step = tf.Variable(0.0, dtype=tf.float64)
        value = center(step)
    numerical = (center(1e-2) - center(-1e-2)) / 2e-2
    np.testing.assert_allclose(tape.gradient(value, step), numerical, rtol=0.05)


def test_saved_model_gives_the_same_values(tmp_path):
    module = tf.Module()
    module.serve = _graph(minimise_total_variation, (None, 32, 32, 3), 50, 30)
    tf.saved_model.save(module, str(tmp_path / "model"))
    restored = tf.saved_model.load(str(tmp_path / "model"))
    for batch in (0, 1, 5):
        images, seeds = _smooth_images(5, 32, 3)[:batch], _seeds(batch)
        np.testing.assert_array_equal(restored.serve(images, seeds), module.serve(images, seeds))
