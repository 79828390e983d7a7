import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.defences.low_rank_completion import complete_low_rank


def _matrices(count, rows, columns, rank, seed=0):
    random = np.random.default_rng(seed)
    left, right = (
        random.normal(size=(count, rows, rank)),
        random.normal(size=(count, columns, rank)),
    )
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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
