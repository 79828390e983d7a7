import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from sklearn.neighbors import NearestNeighbors

from sfm_tf.defences.nearest_patches import find_nearest_patches
from sfm_tf.defences.patch_database import collect_patches


def _values(count, values, seed):
    return np.random.default_rng(seed).random((count, values), np.float32)


def _reference(queries, patches, neighbours):
    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute")
    return search.fit(patches.astype(np.float64)).kneighbors(queries.astype(np.float64))


@pytest.mark.parametrize(("values", "neighbours"), [(75, 1), (25, 2), (25, 10), (75, 50)])
def test_agrees_with_scikit_learn_on_more_queries_than_are_scored_at_once(values, neighbours):
    # 9 million distances, which is more than two steps of the search.
    queries, patches = _values(3000, values, 0), _values(3001, values, 1)
    found = find_nearest_patches(tf.constant(queries), tf.constant(patches), neighbours).numpy()
    distances, indices = _reference(queries, patches, neighbours)
    # Two patches at the same distance but for rounding may change places.
    assert (found == indices).mean() > 0.999
    found_distances = np.linalg.norm(queries[:, np.newaxis] - patches[found], axis=2)
    np.testing.assert_allclose(found_distances, distances, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 10, 15, 16, 17, 159, 160, 161])
def test_agrees_with_scikit_learn_for_few_patches(count):
    queries, patches = _values(20, 25, 0), _values(count, 25, 1)
    neighbours = min(count, 10)
    found = find_nearest_patches(tf.constant(queries), tf.constant(patches), neighbours)
    np.testing.assert_array_equal(found, _reference(queries, patches, neighbours)[1])


def test_distances_are_the_least_among_natural_patches_with_many_equals():
    digits = np.rint(sklearn.datasets.load_digits().images * (255 / 16)).astype(np.uint8)
    database = collect_patches(digits[:500, ..., np.newaxis], 4000, 5, 0)
    patches = database.patches.reshape(-1, 25) / np.float32(255)
    noise = np.random.default_rng(0).normal(0, 0.05, (500, 25))
    queries = np.clip(patches[:500] + noise, 0, 1).astype(np.float32)
    found = find_nearest_patches(tf.constant(queries), tf.constant(patches), 10).numpy()
    distances = np.linalg.norm(queries[:, np.newaxis] - patches[found], axis=2)
    np.testing.assert_allclose(distances, _reference(queries, patches, 10)[0], atol=1e-5)


def test_finds_patches_themselves_although_others_differ_by_one_level():
    patches = np.full((76, 75), 200, np.float32)
    patches[np.arange(75), np.arange(75)] = 201
    patches = tf.constant(patches / 255)
    found = find_nearest_patches(patches, patches, 1)
    np.testing.assert_array_equal(found[:, 0], np.arange(76))


def test_each_neighbour_is_found_once():
    queries, patches = tf.zeros([3, 25]), tf.zeros([40, 25])
    found = find_nearest_patches(queries, patches, 40).numpy()
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(40), (3, 1)))


@pytest.mark.parametrize("neighbours", [1, 3])
def test_no_queries_have_no_neighbours(neighbours):
    found = find_nearest_patches(tf.zeros([0, 25]), tf.zeros([100, 25]), neighbours)
    assert found.shape == (0, neighbours)


def test_is_the_same_in_a_graph_of_unknown_size_and_in_double_precision():
    queries, patches = _values(50, 25, 0), tf.constant(_values(1000, 25, 1))
    search = tf.function(
        lambda values: find_nearest_patches(values, patches, 3),
        input_signature=[tf.TensorSpec([None, 25])],
    )
    found = find_nearest_patches(tf.constant(queries), patches, 3)
    np.testing.assert_array_equal(search(queries), found)
    np.testing.assert_array_equal(search(queries[:0]), found[:0])
    exact = find_nearest_patches(tf.constant(queries, tf.float64), tf.cast(patches, tf.float64), 3)
    np.testing.assert_array_equal(exact, found)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
