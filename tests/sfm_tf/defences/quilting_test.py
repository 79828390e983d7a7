import itertools

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from scipy import stats

from sfm_tf.defences.patch_database import PatchDatabase, collect_patches
from sfm_tf.defences.quilting import quilt_images, quilt_images_smoothly, quilting_operation
from sfm_tf.errors import SfmError

SIZES = [(5, 5), (8, 8), (9, 12), (6, 13)]


def _images(count, height, width, channels, seed=0):
    return np.random.default_rng(seed).random((count, height, width, channels), np.float32)


def _database(count, channels, seed=1):
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
    images, database = _images(6, height, width, channels), _database(60, channels)
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


@pytest.mark.parametrize("shape", [(5, 5, 1), (8, 8, 1), (32, 32, 3), (33, 35, 1), (64, 64, 3)])
def test_every_pixel_is_written(shape):
    database = PatchDatabase(np.full((3, 5, 5, shape[-1]), 255, np.uint8))
    images = _images(2, *shape)
    quilted = _quilt_in_graph(images, _seeds(2), 2, database)
    np.testing.assert_array_equal(quilted, np.ones_like(images))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (13, 12)])
def test_an_image_whose_patches_are_in_the_database_stays_as_it_is(height, width):
    levels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    database = collect_patches(levels, 2 * (height - 4) * (width - 4), 5, 0)
    images = levels / np.float32(255)
    np.testing.assert_array_equal(_quilt_in_graph(images, _seeds(2), 1, database), images)


def test_bytes_and_the_same_numbers_in_float_are_one_database():
    patches = np.random.default_rng(0).integers(0, 256, (50, 5, 5, 3), np.uint8)
    images = _images(3, 11, 8, 3)
    quilted = quilt_images(images, _seeds(3), 2, PatchDatabase(patches))
    in_float = PatchDatabase(patches / np.float32(255))
    np.testing.assert_array_equal(quilted, quilt_images(images, _seeds(3), 2, in_float))


def test_draws_each_of_the_nearest_as_often_and_no_other():
    image, database = _images(1, 5, 5, 3), _database(30, 3)
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
    images, seeds, database = _images(5, 11, 11, 3), _seeds(5), _database(40, 3)
    together = quilt_images(images, seeds, 5, database).numpy()
    for index in range(5):
        alone = quilt_images(images[index : index + 1], seeds[index : index + 1], 5, database)
        np.testing.assert_array_equal(alone[0], together[index])
    other = quilt_images(images, _seeds(5, 1), 5, database).numpy()
    assert (other != together).any(axis=(1, 2, 3)).all()


def test_seeds_make_no_difference_to_the_nearest_patch():
    images, database = _images(3, 11, 11, 1), _database(40, 1)
    first, second = (quilt_images(images, _seeds(3, seed), 1, database) for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("function", "neighbours"),
    [(quilt_images, 1), (quilt_images, 3), (quilt_images_smoothly, 1)],
)
def test_runs_in_a_graph_of_unknown_batch_and_with_no_images(function, neighbours):
    images, seeds, database = _images(4, 8, 10, 3), _seeds(4), _database(300, 3)
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
    operation = quilting_operation(_database(300, 3))
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
    images, database = _images(2, height, width, 3), _database(60, 3)
    patches = database.patches.astype(np.float64)
    expected = [_smooth_by_closed_form(image, patches, count) for image in images]
    smooth = quilt_images_smoothly(images, _seeds(2), neighbours, database)
    np.testing.assert_allclose(smooth, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_gradient_is_the_numerical_derivative(channels):
    images, database = tf.constant(_images(2, 8, 9, channels), tf.float64), _database(50, channels)
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
    database = _database(300, 3)
    operation = quilting_operation(database)
    assert operation.is_random
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
        function(tf.zeros(shape), _seeds(1), neighbours, _database(9, 3))


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
