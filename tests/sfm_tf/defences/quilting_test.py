import hashlib
import itertools

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from sfm_tf.defences.quilting import (
    PatchDatabase,
    collect_patches,
    find_nearest_patches,
    quilt_images,
    quilt_images_smoothly,
    quilting_operation,
)
from sfm_tf.errors import SfmError


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


def _numbered_images(count, height, width, channels):
    """Images in which every value is another one, so that a patch tells where it is from."""
    shape = (count, height, width, channels)
    return (np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32)


def _every_patch(images, size):
    _, height, width, _ = images.shape
    return [
        image[top : top + size, left : left + size]
        for image in images
        for top in range(height - size + 1)
        for left in range(width - size + 1)
    ]


def _bytes(patches):
    return sorted(patch.tobytes() for patch in patches)


def _database(seed=0, dtype=np.uint8):
    images = np.random.default_rng(seed).integers(0, 256, (3, 8, 8, 3), np.uint8)
    return collect_patches((images / 255).astype(dtype) if dtype != np.uint8 else images, 20, 5, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_as_many_patches_as_positions_are_all_patches(channels):
    images = _numbered_images(2, 8, 6, channels)
    expected = _every_patch(images, 5)
    database = collect_patches(images, len(expected), 5, seed=0)
    assert _bytes(database.patches) == _bytes(expected)


def test_fewer_patches_are_distinct_ones_of_them():
    images = _numbered_images(4, 9, 7, 3)
    everything = set(_bytes(_every_patch(images, 5)))
    for seed in range(20):
        found = _bytes(collect_patches(images, 30, 5, seed).patches)
        assert len(set(found)) == 30
        assert everything.issuperset(found)


def test_more_patches_than_positions_repeat_all_equally_often():
    images = _numbered_images(1, 6, 6, 1)
    found = _bytes(collect_patches(images, 11, 5, 0).patches)
    assert sorted(found.count(patch) for patch in set(found)) == [2, 3, 3, 3]


def test_every_position_is_as_likely():
    images = _numbered_images(2, 6, 7, 1)
    everything = _bytes(_every_patch(images, 5))
    found = [_bytes(collect_patches(images, 3, 5, seed).patches) for seed in range(1000)]
    counts = np.array([sum(patch in some for some in found) for patch in everything])
    # Each of 12 positions is expected 250 times, with a standard deviation of 14.
    assert counts.sum() == 3000
    assert np.abs(counts - 250).max() < 60


def test_seed_determines_the_patches():
    images = _numbered_images(5, 12, 12, 1)
    first, again, other = (collect_patches(images, 50, 5, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.patches, again.patches)
    assert (first.patches != other.patches).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_is_read_back_as_written(tmp_path, dtype):
    database, path = _database(dtype=dtype), tmp_path / "patches.npz"
    database.save(path)
    loaded = PatchDatabase.load(path)
    assert loaded.patches.dtype == dtype
    np.testing.assert_array_equal(loaded.patches, database.patches)
    assert loaded.digest() == database.digest()
    assert (loaded.count, loaded.size, loaded.channels) == (20, 5, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["patches.npz"]


def test_digest_is_of_type_shape_and_values():
    patches = np.zeros((3, 5, 5, 1), np.uint8)
    expected = hashlib.sha256(b"uint8 (3, 5, 5, 1)" + bytes(75)).hexdigest()
    assert PatchDatabase(patches).digest() == expected
    others = [patches.astype(np.float32), np.zeros((1, 5, 5, 3), np.uint8), patches + np.uint8(1)]
    assert expected not in [PatchDatabase(other).digest() for other in others]
    # The layout in memory does not count.
    stored = _database()
    assert PatchDatabase(np.asfortranarray(stored.patches)).digest() == stored.digest()


def test_no_damage_goes_unnoticed(tmp_path):
    database, path = _database(), tmp_path / "patches.npz"
    database.save(path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for position in random.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            # A bit in the archive's dates is no damage.
            assert PatchDatabase.load(path).digest() == database.digest()
        except SfmError as error:
            assert "fit the defences again" in str(error)  # noqa: PT017


@pytest.mark.parametrize("length", [None, 0, 10, 500, -1])
def test_rejects_a_file_that_is_missing_or_cut_short(tmp_path, length):
    path = tmp_path / "patches.npz"
    if length is not None:
        _database().save(path)
        path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SfmError, match=r"Cannot read the patches in .*patches\.npz.*again"):
        PatchDatabase.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"patches": np.zeros((3, 5, 4, 1), np.uint8)}, r"shape \(3, 5, 4, 1\); expected uint8"),
        ({"patches": np.array([None])}, "Cannot read"),
        ({"images": np.zeros((3, 5, 5, 1), np.uint8)}, "no item named 'patches.npy'"),
    ],
)
def test_rejects_another_archive(tmp_path, content, message):
    path = tmp_path / "patches.npz"
    np.savez(path, **content)
    with pytest.raises(SfmError, match=message):
        PatchDatabase.load(path)


@pytest.mark.parametrize(
    "patches",
    [
        np.zeros((3, 5, 5), np.uint8),
        np.zeros((0, 5, 5, 3), np.uint8),
        np.zeros((3, 5, 4, 3), np.uint8),
        np.zeros((3, 5, 5, 2), np.uint8),
        np.zeros((3, 5, 5, 3), np.float64),
        np.full((2, 5, 5, 1), -0.1, np.float32),
        np.full((2, 5, 5, 1), 1.1, np.float32),
        np.full((2, 5, 5, 1), np.nan, np.float32),
    ],
)
def test_rejects_arrays_that_are_no_patches(patches):
    with pytest.raises(SfmError, match="Invalid patches(, .* of shape| with values) .*; expected"):
        PatchDatabase(patches)


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (2, 4, 8, 1), (2, 8, 4, 1), (8, 8, 1)])
def test_rejects_images_that_hold_no_patch(shape):
    with pytest.raises(SfmError, match="Cannot collect patches of 5x5 pixels from images of shape"):
        collect_patches(np.zeros(shape, np.uint8), 1, 5, 0)


@pytest.mark.parametrize(("count", "size"), [(0, 5), (5, 0), (-1, 5)])
def test_rejects_numbers_that_are_not_positive(count, size):
    with pytest.raises(SfmError, match=f"{count} patches of size {size}; expected positive"):
        collect_patches(np.zeros((1, 8, 8, 1), np.uint8), count, size, 0)


SIZES = [(5, 5), (8, 8), (9, 12), (6, 13)]


def _images(count, height, width, channels, seed=0):
    return np.random.default_rng(seed).random((count, height, width, channels), np.float32)


def _quilting_database(count, channels, seed=1):
    return PatchDatabase(_images(count, 5, 5, channels, seed))


def _seeds(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**31 - 1, (count, 2), np.int32)


def _photographs():
    """Pieces of two photographs, uint8 of shape (count, 32, 32, 3)."""
    photographs = sklearn.datasets.load_sample_images().images
    pieces = [photograph[i : i + 32] for photograph in photographs for i in (100, 180, 260)]
    rows = np.stack([piece[:, :608] for piece in pieces])
    return rows.reshape(6, 32, 19, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def _quilt_in_graph(images, seeds, neighbours, database):
    return tf.function(lambda *arrays: quilt_images(*arrays, neighbours, database))(images, seeds)


def _starts(length):
    return sorted({*range(0, length - 4, 3), length - 5})


def _nearest_by_brute_force(image, patches, count):
    """The nearest patches at each position, in double precision."""
    found = {}
    for top, left in itertools.product(_starts(image.shape[0]), _starts(image.shape[1])):
        piece = image[top : top + 5, left : left + 5].astype(np.float64)
        distances = ((patches.astype(np.float64) - piece) ** 2).sum(axis=(1, 2, 3))
        found[top, left] = np.argsort(distances)[:count]
    return found


def _best_seam(errors):
    """The columns of the path through two columns that has the least sum, of all there are."""
    paths = [
        path
        for path in itertools.product((0, 1), repeat=len(errors))
        if all(abs(a - b) <= 1 for a, b in itertools.pairwise(path))
    ]
    return min(paths, key=lambda path: sum(errors[row, column] for row, column in enumerate(path)))


def _quilt_by_brute_force(image, patches):
    result = np.full(image.shape, np.nan, np.float32)
    for (top, left), nearest in _nearest_by_brute_force(image, patches, 1).items():
        new = patches[nearest[0]]
        window = result[top : top + 5, left : left + 5]
        errors = ((window.astype(np.float64) - new) ** 2).sum(axis=2)
        taken = np.ones((5, 5), bool)
        if left:
            for row, column in enumerate(_best_seam(errors[:, :2])):
                taken[row, :column] = False
        if top:
            for column, row in enumerate(_best_seam(errors[:2].T)):
                taken[:row, column] = False
        window[taken] = new[taken]
    return result


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_brute_force_over_all_patches_and_all_seams(channels, height, width):
    images, database = _images(6, height, width, channels), _quilting_database(60, channels)
    expected = [_quilt_by_brute_force(image, database.patches) for image in images]
    np.testing.assert_array_equal(quilt_images(images, _seeds(6), 1, database), expected)


def test_equals_brute_force_on_photographs():
    photographs = _photographs()
    database = collect_patches(photographs[10:], 800, 5, 0)
    noise = np.random.default_rng(0).normal(0, 0.03, (1, 32, 32, 3))
    images = np.clip(photographs[:1] / 255 + noise, 0, 1).astype(np.float32)
    patches = database.patches.astype(np.float32) / np.float32(255)
    expected = [_quilt_by_brute_force(image, patches) for image in images]
    np.testing.assert_array_equal(_quilt_in_graph(images, _seeds(1), 1, database), expected)


def test_seams_keep_old_pixels_where_these_fit_better():
    database = PatchDatabase(np.stack([np.zeros((5, 5, 1)), np.ones((5, 5, 1))]).astype(np.float32))
    database.patches[1, :, 1] = [[0.0], [1.0], [0.0], [1.0], [0.0]]
    images = np.concatenate([np.zeros((1, 5, 3, 1)), np.ones((1, 5, 5, 1))], axis=2)
    quilted = quilt_images(images.astype(np.float32), _seeds(1), 1, database)[0, :, :, 0]
    expected = np.concatenate([np.zeros((5, 3)), np.ones((5, 5))], axis=1)
    expected[:, 4] = [0, 1, 0, 1, 0]
    expected[::2, 3] = 0
    np.testing.assert_array_equal(quilted, expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (13, 12)])
def test_an_image_whose_patches_are_in_the_database_stays_as_it_is(height, width):
    levels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    database = collect_patches(levels, 2 * (height - 4) * (width - 4), 5, 0)
    images = levels / np.float32(255)
    np.testing.assert_array_equal(_quilt_in_graph(images, _seeds(2), 1, database), images)


def test_draws_each_of_the_nearest_as_often_and_no_other():
    image, database = _images(1, 5, 5, 3), _quilting_database(30, 3)
    nearest = _nearest_by_brute_force(image[0], database.patches, 4)[0, 0]
    quilted = quilt_images(np.repeat(image, 400, axis=0), _seeds(400), 4, database).numpy()
    is_patch = (quilted[:, np.newaxis] == database.patches[nearest]).all(axis=(2, 3, 4))
    assert (is_patch.sum(axis=1) == 1).all()
    assert stats.chisquare(is_patch.sum(axis=0)).pvalue > 1e-3


def test_draws_for_each_patch_anew():
    patches = np.stack([np.full((5, 5, 1), level, np.uint8) for level in (0, 255)])
    images = np.full((1, 5, 5 + 3 * 99, 1), 0.5, np.float32)
    quilted = _quilt_in_graph(images, _seeds(1), 2, PatchDatabase(patches))
    # The last three columns of each patch are its own.
    levels = quilted[0, 2, 2::3, 0].numpy()[:100]
    assert 25 < levels.sum() < 75
    changes = (levels[1:] != levels[:-1]).sum()
    assert 25 < changes < 75


def test_draws_depend_on_the_own_seeds_only():
    images, seeds, database = _images(5, 11, 11, 3), _seeds(5), _quilting_database(40, 3)
    together = quilt_images(images, seeds, 5, database).numpy()
    for index in range(5):
        alone = quilt_images(images[index : index + 1], seeds[index : index + 1], 5, database)
        np.testing.assert_array_equal(alone[0], together[index])
    other = quilt_images(images, _seeds(5, 1), 5, database).numpy()
    assert (other != together).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("function", "neighbours"),
    [(quilt_images, 1), (quilt_images, 3), (quilt_images_smoothly, 1)],
)
def test_runs_in_a_graph_of_unknown_batch_and_with_no_images(function, neighbours):
    images, seeds, database = _images(4, 8, 10, 3), _seeds(4), _quilting_database(300, 3)
    graph = tf.function(
        lambda images, seeds: function(images, seeds, neighbours, database),
        input_signature=[tf.TensorSpec([None, 8, 10, 3]), tf.TensorSpec([None, 2], tf.int32)],
    )
    np.testing.assert_allclose(
        graph(images, seeds), function(images, seeds, neighbours, database), atol=1e-6
    )
    assert graph(images[:0], seeds[:0]).shape == (0, 8, 10, 3)
    assert function(images[:0], seeds[:0], neighbours, database).shape == (0, 8, 10, 3)


def test_survives_a_saved_model(tmp_path):
    operation = quilting_operation(_quilting_database(300, 3))
    images, seeds = _images(4, 8, 8, 3), _seeds(4)
    module = tf.Module()
    module.quilt = tf.function(
        lambda images, seeds: operation.forward(images, seeds, 3),
        input_signature=[tf.TensorSpec([None, 8, 8, 3]), tf.TensorSpec([None, 2], tf.int32)],
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    expected = operation.forward(images, seeds, 3)
    np.testing.assert_array_equal(loaded.quilt(images, seeds), expected)


def _smooth_by_closed_form(image, patches, count):
    """Weighted averages of the nearest patches, then means of those that cover a pixel."""
    sums, covers = np.zeros(image.shape), np.zeros(image.shape)
    for (top, left), nearest in _nearest_by_brute_force(image, patches, count).items():
        window = np.s_[top : top + 5, left : left + 5]
        distances = ((patches[nearest] - image[window]) ** 2).sum(axis=(1, 2, 3))
        weights = np.exp(-distances / (distances.mean() + 1e-6))
        sums[window] += np.average(patches[nearest], axis=0, weights=weights)
        covers[window] += 1
    return sums / covers


@pytest.mark.parametrize(("neighbours", "count"), [(1, 10), (10, 10), (12, 12)])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_smooth_version_is_the_mean_of_weighted_averages(height, width, neighbours, count):
    images, database = _images(2, height, width, 3), _quilting_database(60, 3)
    patches = database.patches.astype(np.float64)
    expected = [_smooth_by_closed_form(image, patches, count) for image in images]
    smooth = quilt_images_smoothly(images, _seeds(2), neighbours, database)
    np.testing.assert_allclose(smooth, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_gradient_is_the_numerical_derivative(channels):
    images, database = (
        tf.constant(_images(2, 8, 9, channels), tf.float64),
        _quilting_database(50, channels),
    )
    direction = np.random.default_rng(2).standard_normal(images.shape)

    def loss_at(step):
        moved = images + step * direction
        return tf.reduce_sum(quilt_images_smoothly(moved, _seeds(2), 1, database) ** 2)

    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = loss_at(0.0)
    slope = np.sum(tape.gradient(loss, images) * direction)
    np.testing.assert_allclose(slope, (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 200])
def test_smooth_gradient_is_finite_where_patches_fit_exactly(count):
    database = PatchDatabase(np.zeros((count, 5, 5, 1), np.uint8))
    images = tf.zeros([2, 8, 8, 1])

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1])])
    def gradient(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            smooth = quilt_images_smoothly(images, _seeds(2), 1, database)
        return tape.gradient(smooth, images)

    assert np.isfinite(gradient(images)).all()


def test_smooth_version_is_nearer_to_quilting_than_the_image_is():
    photographs = _photographs()
    database = collect_patches(photographs[10:], 5000, 5, 0)
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 32, 32, 3))
    images = np.clip(photographs[:4] / 255 + noise, 0, 1).astype(np.float32)
    quilted = _quilt_in_graph(images, _seeds(4), 1, database)
    smooth = quilt_images_smoothly(images, _seeds(4), 1, database)
    assert np.abs(smooth - quilted).mean() < np.abs(images - quilted).mean()


def test_operation_draws_and_is_told_apart_by_its_patches():
    database = _quilting_database(300, 3)
    operation = quilting_operation(database)
    assert operation.is_random
    assert [operation.draws_if(neighbours) for neighbours in (1, 2)] == [False, True]
    assert operation.content == database.digest()
    assert operation.form("quilting") == "quilting_NEIGHBOURS"
    assert [operation.allows([number]) for number in (0, 1, 50, 51)] == [False, True, True, False]
    arguments = _images(2, 8, 8, 3), _seeds(2), 3
    np.testing.assert_array_equal(operation.forward(*arguments), quilt_images(*arguments, database))
    expected = quilt_images_smoothly(*arguments, database)
    np.testing.assert_array_equal(operation.smooth(*arguments), expected)


def test_operation_rejects_patches_of_another_size():
    database = PatchDatabase(np.zeros((3, 4, 4, 1), np.uint8))
    with pytest.raises(SfmError, match="Cannot quilt with patches of 4x4 pixels; expected 5x5"):
        quilting_operation(database)


@pytest.mark.parametrize(
    ("shape", "neighbours", "message"),
    [
        ((1, 4, 8, 3), 1, "Images of 4x8 pixels are too small for quilting; expected at least 5x5"),
        ((1, 8, 8, 1), 1, r"images of 1 channels with patches of shape \(5, 5, 3\); expected \(5"),
        ((1, 8, 8, 3), 0, "Invalid number of neighbours 0; expected 1 to 9, the number of patches"),
        ((1, 8, 8, 3), 10, "Invalid number of neighbours 10; expected 1 to 9"),
        ((8, 8, 3), 1, "Cannot pre-process images of shape"),
    ],
)
@pytest.mark.parametrize("function", [quilt_images, quilt_images_smoothly])
def test_rejects_what_does_not_fit(function, shape, neighbours, message):
    with pytest.raises(SfmError, match=message):
        function(tf.zeros(shape), _seeds(1), neighbours, _quilting_database(9, 3))
