import hashlib

import numpy as np
import pytest

from sfm_tf.defences.patch_database import PatchDatabase, collect_patches
from sfm_tf.errors import SfmError


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
    assert [file.name for file in tmp_path.iterdir()] == ["patches.npz"]


def test_says_its_sizes():
    database = _database()
    assert (database.count, database.size, database.channels) == (20, 5, 3)


def test_digest_is_of_type_shape_and_values():
    patches = np.zeros((3, 5, 5, 1), np.uint8)
    expected = hashlib.sha256(b"uint8 (3, 5, 5, 1)" + bytes(75)).hexdigest()
    assert PatchDatabase(patches).digest() == expected
    others = [patches.astype(np.float32), np.zeros((1, 5, 5, 3), np.uint8), patches + np.uint8(1)]
    assert expected not in [PatchDatabase(other).digest() for other in others]


def test_digest_does_not_depend_on_the_layout_in_memory():
    patches = _database().patches
    assert PatchDatabase(np.asfortranarray(patches)).digest() == PatchDatabase(patches).digest()


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
            assert "collect them again" in str(error)  # noqa: PT017


@pytest.mark.parametrize("length", [0, 10, 500, -1])
def test_rejects_a_file_cut_short(tmp_path, length):
    path = tmp_path / "patches.npz"
    _database().save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SfmError, match=r"Cannot read the patches in .*patches\.npz \(.*again"):
        PatchDatabase.load(path)


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises(SfmError, match="Cannot read the patches in .*none.npz.*collect them again"):
        PatchDatabase.load(tmp_path / "none.npz")


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
    ("dtype", "shape"),
    [
        (np.uint8, (3, 5, 5)),
        (np.uint8, (0, 5, 5, 3)),
        (np.uint8, (3, 5, 4, 3)),
        (np.uint8, (3, 5, 5, 2)),
        (np.float64, (3, 5, 5, 3)),
    ],
)
def test_rejects_arrays_that_are_no_patches(dtype, shape):
    with pytest.raises(
        SfmError, match="Invalid patches, .* of shape .*; expected uint8 or float32"
    ):
        PatchDatabase(np.zeros(shape, dtype))


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_rejects_values_outside_the_range(value):
    patches = np.zeros((2, 5, 5, 1), np.float32)
    patches[1, 2, 3] = value
    with pytest.raises(SfmError, match="with values from .* to .*; expected numbers from 0 to 1"):
        PatchDatabase(patches)


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (2, 4, 8, 1), (2, 8, 4, 1), (8, 8, 1)])
def test_rejects_images_that_hold_no_patch(shape):
    with pytest.raises(SfmError, match="Cannot collect patches of 5x5 pixels from images of shape"):
        collect_patches(np.zeros(shape, np.uint8), 1, 5, 0)


@pytest.mark.parametrize(("count", "size"), [(0, 5), (5, 0), (-1, 5)])
def test_rejects_numbers_that_are_not_positive(count, size):
    with pytest.raises(SfmError, match=f"{count} patches of size {size}; expected positive"):
        collect_patches(np.zeros((1, 8, 8, 1), np.uint8), count, size, 0)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
