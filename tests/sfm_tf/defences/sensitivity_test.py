import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.defences.sensitivity import (
    SMOOTHING_WEIGHT,
    average_sensitive_points,
    complete_high_points,
    complete_low_rank,
    find_sensitive_points,
    remove_sensitive_points,
    sensitivity_operation,
    smooth_low_points,
)
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.preprocessors.total_variation import solve_total_variation


def _matrices(count, rows, columns, rank, seed=0):
    random = np.random.default_rng(seed)
    left = random.normal(size=(count, rows, rank))
    right = random.normal(size=(count, columns, rank))
    return (left @ right.transpose(0, 2, 1)).astype(np.float32)


def _known(shape, missing, seed=1):
    return np.random.default_rng(seed).random(shape) >= missing


def _relative_errors(found, expected):
    return np.linalg.norm(found - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))


def _soft_impute(matrix, known, thresholds):
    """Mazumder, Hastie and Tibshirani 2010: thresholds the singular values of the filled matrix."""
    low_rank = np.zeros_like(matrix)
    for threshold in thresholds:
        left, values, right = np.linalg.svd(np.where(known, matrix, low_rank), full_matrices=False)
        low_rank = (left * np.maximum(values - threshold, 0)) @ right
    return np.where(known, matrix, low_rank)


@pytest.mark.parametrize("missing", [0.2, 0.3])
@pytest.mark.parametrize("rank", [2, 8])
def test_recovers_a_matrix_of_rank_two_whatever_the_rank_allowed(missing, rank):
    expected = _matrices(5, 32, 32, 2)
    known = _known(expected.shape, missing)
    holes = np.where(known, expected, 0)
    found = complete_low_rank(holes, known, rank, 160, last_threshold=1e-4)
    assert _relative_errors(holes, expected).min() > 0.3
    assert _relative_errors(found, expected).max() < 1e-2


def test_equals_singular_value_thresholding_once_it_has_converged():
    matrices = _matrices(2, 20, 12, 3) + np.random.default_rng(2).normal(0, 0.3, (2, 20, 12))
    matrices = matrices.astype(np.float32)
    known = _known(matrices.shape, 0.2)
    matrices = np.where(known, matrices, 0).astype(np.float32)
    found = complete_low_rank(matrices, known, 12, 100, 0.1, 0.1)
    for each in range(2):
        threshold = 0.1 * np.linalg.norm(matrices[each])
        expected = _soft_impute(matrices[each].astype(float), known[each], [threshold] * 100)
        np.testing.assert_allclose(found[each], expected, atol=1e-3)


def test_keeps_known_entries_bit_for_bit():
    matrices = _matrices(3, 9, 7, 4)
    known = _known(matrices.shape, 0.4)
    found = complete_low_rank(matrices, known, 2, 5).numpy()
    np.testing.assert_array_equal(found[known], matrices[known])
    assert (found[~known] != matrices[~known]).all()


def test_a_first_guess_of_the_right_rank_speeds_it_up():
    expected = _matrices(4, 24, 16, 2)
    known = _known(expected.shape, 0.5)
    fill = {"rank": 2, "iterations": 4, "first_threshold": 0.02}
    guessed = complete_low_rank(expected, known, **fill)
    unguessed = complete_low_rank(np.where(known, expected, 0), known, **fill)
    assert (_relative_errors(guessed, expected) < _relative_errors(unguessed, expected)).all()


def test_scales_with_each_matrix_and_not_with_the_batch():
    matrices = _matrices(4, 16, 12, 3)
    known = _known(matrices.shape, 0.3)
    found = complete_low_rank(matrices, known, 3, 10).numpy()
    scales = np.array([1, 100, 0.01, 7], np.float32)[:, None, None]
    scaled = complete_low_rank(matrices * scales, known, 3, 10).numpy()
    np.testing.assert_allclose(scaled / scales, found, atol=1e-4)
    for each in range(4):
        alone = complete_low_rank(matrices[each : each + 1], known[each : each + 1], 3, 10)
        np.testing.assert_allclose(alone[0], found[each], atol=1e-5)


def test_nothing_known_and_nothing_but_zeros_stay_finite():
    nothing = complete_low_rank(tf.ones([1, 6, 5]), tf.zeros([1, 6, 5], tf.bool), 2, 8)
    assert np.isfinite(nothing).all()
    zeros = complete_low_rank(tf.zeros([1, 6, 5]), _known((1, 6, 5), 0.5), 2, 8)
    np.testing.assert_array_equal(zeros, np.zeros((1, 6, 5)))


def test_runs_in_a_graph_with_an_unknown_and_an_empty_batch():
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 7], tf.float32),
            tf.TensorSpec([None, None, 7], tf.bool),
        ]
    )
    def complete(matrices, known):
        return complete_low_rank(matrices, known, 3, 6)

    matrices = _matrices(3, 9, 7, 3)
    known = _known(matrices.shape, 0.3)
    eager = complete_low_rank(matrices, known, 3, 6)
    np.testing.assert_allclose(complete(matrices, known), eager, atol=1e-5)
    assert complete(matrices[:0], known[:0]).shape == (0, 9, 7)


SHAPES = [(8, 8, 1), (32, 32, 3)]


def _linear_classifier(shape, seed=0):
    """Two classes, whose log-odds are the difference of their logits."""
    inputs = keras.Input(shape)
    logits = keras.layers.Dense(2)(keras.layers.Flatten()(inputs))
    classifier = keras.Model(inputs, logits)
    kernel = np.random.default_rng(seed).normal(size=(np.prod(shape), 2))
    classifier.set_weights([kernel, np.zeros(2)])
    gradient = (kernel[:, 0] - kernel[:, 1]).reshape(shape)
    return classifier, np.linalg.norm(gradient, axis=-1)


def _compiled(classifier, percent):
    """The defence for any batch; eager loops of small steps are slow."""
    return tf.function(
        lambda images: remove_sensitive_points(images, percent, classifier),
        input_signature=[tf.TensorSpec((None, *classifier.input_shape[1:]), tf.float32)],
    )


@functools.cache
def _linear_defence(shape):
    """That of the linear classifier with 20 % high points, traced once."""
    classifier, _ = _linear_classifier(shape)
    # Else nothing but the function's graph would hold the weights.
    return classifier, _compiled(classifier, 20)


def _images(shape, count=3, seed=0):
    return np.random.default_rng(seed).random((count, *shape), dtype=np.float32)


def _smooth_images(shape, count=3):
    """Gradients and a soft disc, other ones in each image and channel."""
    height, width, channels = shape
    random = np.random.default_rng(7)
    rows, columns = np.mgrid[:height, :width] / height
    slopes = random.uniform(-0.3, 0.3, (2, count, 1, 1, channels))
    center = random.uniform(0.3, 0.7, (2, count, 1, 1, channels))
    rows, columns = rows[..., None], columns[..., None]
    disc = np.exp(-((rows - center[0]) ** 2 + (columns - center[1]) ** 2) / 0.08)
    return (0.4 + slopes[0] * rows + slopes[1] * columns + 0.3 * disc).astype(np.float32)


def _holes(shape, count, share, seed=3):
    return np.random.default_rng(seed).random((count, *shape[:2], 1)) < share


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("percent", [1, 20, 50])
def test_high_points_are_those_of_the_largest_gradient(shape, percent):
    classifier, norms = _linear_classifier(shape)
    high = find_sensitive_points(tf.constant(_images(shape)), percent, classifier).numpy()
    assert high.shape == (3, *shape[:2], 1)
    count = max(1, round(percent * norms.size / 100))
    expected = norms >= np.sort(norms, axis=None)[-count]
    np.testing.assert_array_equal(high[..., 0], np.tile(expected, (3, 1, 1)))


def test_a_certain_classifier_still_has_a_gradient():
    classifier, norms = _linear_classifier((8, 8, 1))
    kernel, bias = classifier.get_weights()
    classifier.set_weights([kernel, bias + [1000.0, 0.0]])
    high = find_sensitive_points(tf.constant(_images((8, 8, 1))), 10, classifier).numpy()
    np.testing.assert_array_equal(high[0, ..., 0], norms >= np.sort(norms, axis=None)[-6])
    # Tiny weights are no ties.
    classifier.set_weights([kernel * 1e-30, bias])
    small = find_sensitive_points(tf.constant(_images((8, 8, 1))), 10, classifier).numpy()
    np.testing.assert_array_equal(small, high)


def test_of_equal_gradients_the_first_pixels_are_high():
    classifier, _ = _linear_classifier((4, 4, 1))
    kernel, bias = classifier.get_weights()
    kernel[:] = 0
    kernel[5, 0] = 1
    classifier.set_weights([kernel, bias])
    high = find_sensitive_points(tf.constant(_images((4, 4, 1))), 25, classifier).numpy()
    np.testing.assert_array_equal(np.flatnonzero(high[0]), [0, 1, 2, 5])


def test_values_of_high_points_play_no_part():
    shape = (16, 16, 3)
    images, high = _smooth_images(shape), _holes(shape, 3, 0.25)
    high[0, 2:13, 2:13] = True
    damaged = np.where(high, _images(shape), images)
    smooth = tf.function(smooth_low_points)
    smoothed = smooth(damaged, high)
    np.testing.assert_array_equal(smoothed, smooth(images, high))


@pytest.mark.parametrize("percent", [10, 25])
def test_completion_recovers_an_image_of_rank_two(percent):
    random = np.random.default_rng(0)
    waves = np.sin(np.outer(random.uniform(0.3, 0.6, 4), np.arange(32)))
    image = 0.5 + 0.3 * (np.outer(waves[0], waves[1]) + 0.4 * np.outer(waves[2], waves[3]))
    images = np.tile(image[None, ..., None], (1, 1, 1, 3)).astype(np.float32)
    high = _holes((32, 32, 3), 1, percent / 100)
    holes = np.where(high, 0.5, images).astype(np.float32)
    found = complete_high_points(holes, high).numpy()
    np.testing.assert_allclose(found[~high[..., 0]], images[~high[..., 0]], atol=1e-5)
    errors = np.sqrt(
        np.mean((np.stack([holes, found]) - images)[:, high[..., 0]] ** 2, axis=(1, 2))
    )
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_low_points_are_smoothed_and_high_ones_completed(shape):
    images, (classifier, remove) = _images(shape), _linear_defence(shape)
    images[0] = 1.0
    found = remove(images).numpy()
    high = find_sensitive_points(tf.constant(images), 20, classifier).numpy()
    kept = np.tile(~high, shape[2]).astype(np.float32)
    smoothed = solve_total_variation(images, kept, SMOOTHING_WEIGHT).numpy()
    completed = complete_high_points(smoothed, high).numpy()
    expected = np.clip(np.where(high, completed, smoothed), 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.abs(found - images)[1:].mean() > 0.02


@pytest.mark.parametrize(("shape", "bound"), [(SHAPES[0], 0.03), (SHAPES[1], 0.01)])
def test_clean_smooth_images_change_little_and_noise_is_removed(shape, bound):
    images, (_, remove) = _smooth_images(shape), _linear_defence(shape)
    assert np.abs(remove(images) - images).mean() < bound
    signs = np.sign(np.random.default_rng(1).normal(size=images.shape)).astype(np.float32)
    noisy = images + signs * 16 / 255
    restored = remove(noisy).numpy()
    assert np.square(restored - images).mean() < 0.5 * np.square(noisy - images).mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_does_not_depend_on_its_batch(shape):
    images, (_, remove) = _smooth_images(shape, 4), _linear_defence(shape)
    together = remove(images)
    for each in range(4):
        # Products of matrices round differently in other batches, and a fit amplifies it.
        np.testing.assert_allclose(remove(images[each : each + 1])[0], together[each], atol=1e-3)


def test_the_stand_in_averages_low_neighbours_at_high_points():
    images = _images((8, 8, 1), count=1)
    classifier, norms = _linear_classifier((8, 8, 1))
    high = norms >= np.sort(norms, axis=None)[-13]
    found = average_sensitive_points(tf.constant(images), 20, classifier).numpy()[0, ..., 0]
    np.testing.assert_array_equal(found[~high], images[0, ..., 0][~high])
    for row, column in np.argwhere(high):
        window = (slice(max(row - 2, 0), row + 3), slice(max(column - 2, 0), column + 3))
        neighbours = images[0, ..., 0][window][~high[window]]
        assert found[row, column] == pytest.approx(neighbours.mean(), abs=0.02)


def test_a_chain_has_values_of_the_defence_and_gradients_of_the_stand_in():
    classifier, remove = _linear_defence((8, 8, 1))
    images = tf.constant(_smooth_images((8, 8, 1)))
    operation = sensitivity_operation(classifier)
    assert [operation.allows([percent]) for percent in (0, 1, 50, 51)] == [False, True, True, False]
    assert (operation.is_random, operation.content) == (False, "")
    chain = parse_preprocessor("sensitivity_20", "smooth", {"sensitivity": operation})
    with tf.GradientTape() as tape:
        tape.watch(images)
        found = tf.function(chain)(images)
    gradient = tape.gradient(found, images).numpy()
    np.testing.assert_allclose(found, remove(images), atol=1e-5)
    high = find_sensitive_points(images, 20, classifier).numpy()
    np.testing.assert_array_equal(gradient[high], 0)
    # A low pixel passes on what it gets, and its part in the means of its high neighbours.
    assert (gradient[~high] >= 1).all()
    np.testing.assert_allclose(gradient.sum(axis=(1, 2, 3)), 64, rtol=1e-4)


def test_the_defence_itself_has_no_gradient():
    classifier, images = _linear_classifier((4, 4, 1))[0], tf.constant(_images((4, 4, 1)))
    with tf.GradientTape() as tape:
        tape.watch(images)
        found = remove_sensitive_points(images, 20, classifier)
    assert tape.gradient(found, images) is None


def test_survives_an_export_and_takes_any_batch(tmp_path):
    layers = [keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3), keras.layers.Flatten()]
    classifier = keras.Sequential([*layers, keras.layers.Dense(4)])
    images = _smooth_images((8, 8, 1))
    module = tf.Module()
    module.weights = classifier.variables
    module.serve = _compiled(classifier, 20)
    tf.saved_model.save(module, tmp_path)
    loaded = tf.saved_model.load(tmp_path)
    serve = loaded.serve
    np.testing.assert_allclose(serve(images), module.serve(images), atol=1e-5)
    # Another batch size; an empty one is `serving.signatures`' to answer, for oneDNN cannot.
    np.testing.assert_allclose(serve(images[:1]), module.serve(images[:1]), atol=1e-5)
