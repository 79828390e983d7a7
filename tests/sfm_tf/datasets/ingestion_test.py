import collections
import hashlib
import importlib
import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sfm_tf.datasets import ingestion
from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.datasets.ingestion import ingest, open_source, source_version
from sfm_tf.datasets.settings import DATASETS, DataConfig
from sfm_tf.errors import SfmError
from sfm_tf.records.anomalies import find_anomalies
from sfm_tf.records.example import ImageRecord
from sfm_tf.records.schema import Schema, read_schema
from sfm_tf.records.tfrecords import load_split


def _version(path):
    return source_version(DataConfig(dataset="image_folder", source=str(path)))


def test_version_changes_with_the_files(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    versions = []
    for path, data, time in (
        (first, b"1", 1),
        (first, b"22", 1),
        (first, b"22", 2),
        (second, b"", 1),
    ):
        path.write_bytes(data)
        os.utime(path, ns=(time, time))
        versions.append(_version(tmp_path))
        assert _version(tmp_path) == versions[-1]
    versions.append(_version(second))  # An archive counts as one file.
    first.rename(tmp_path / "c.png")
    versions.append(_version(tmp_path))
    second.write_bytes(b"longer")
    versions.append(_version(second))
    assert len(set(versions)) == 7


def test_version_covers_what_links_lead_to_and_no_files_of_file_managers(tmp_path):
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    photos.mkdir()
    elsewhere.mkdir()
    (photos / "cat").symlink_to(elsewhere)
    before = _version(photos)
    (elsewhere / os.fsdecode(b"caf\xe9.png")).write_bytes(b"1")
    added = _version(photos)
    assert added != before
    (photos / "Thumbs.db").write_bytes(b"1")
    assert _version(photos) == added
    (elsewhere / "loop").symlink_to(photos)
    with pytest.raises(SfmError, match="leads back to a folder that it is in; remove this link"):
        _version(photos)


def test_version_covers_the_archive_that_a_user_put_among_the_downloads(tmp_path):
    config = DataConfig(dataset="tiny_imagenet", data_dir=str(tmp_path))
    before = source_version(config)
    archive = tmp_path / "downloads" / "manual" / "tiny-imagenet-200.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"1")
    assert source_version(config) != before


def test_version_is_of_the_code_where_there_are_no_files(tmp_path):
    assert _version(tmp_path / "absent") == source_version(DataConfig(dataset="image_folder"))
    assert source_version(DataConfig(dataset="digits")) != source_version(
        DataConfig(dataset="cifar10")
    )


@pytest.mark.parametrize("module", DATASETS.values(), ids=DATASETS)
def test_each_dataset_has_a_module_that_opens_it(module):
    assert callable(importlib.import_module(module).open_source)


def test_resizes_images():
    source = open_source(DataConfig(dataset="digits", image_size=4))
    assert (source.height, source.width, source.channels) == (4, 4, 1)
    full = next(open_source(DataConfig(dataset="digits")).splits["train"]())
    small = next(source.splits["train"]())
    assert (small.key, small.label) == (full.key, full.label)
    exact = Image.fromarray(full.image[..., 0]).convert("F")
    resized = np.asarray(exact.resize((4, 4), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(small.image[..., 0], resized, rtol=0, atol=0.5 + 1e-3)


def _no_progress(phase, done, total):
    pass


def _use_source(monkeypatch, train, test=None, class_count=10, **options):
    """Makes ingest read these images (pairs of image and label) instead of a dataset's."""

    def reader(name, pairs):
        def read():
            for index, (image, label) in enumerate(pairs):
                yield ImageRecord(f"{name} {index}", image, label)

        return read

    splits = {"train": reader("train", train)}
    if test is not None:
        splits["test"] = reader("test", test)
    height, width, channels = train[0][0].shape
    names = tuple(f"class {label}" for label in range(class_count))
    source = ImageSource(names, splits, height, width, channels, **options)
    monkeypatch.setattr(ingestion, "open_source", lambda config: source)


def _random_pairs(seed, count):
    images = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)
    return [(image, index % 10) for index, image in enumerate(images)]


def _pixel_counts(folder, schema, splits):
    """Counts how often each image is in the splits, as a multiset."""
    return collections.Counter(
        np.rint(image * 255).astype(np.uint8).tobytes()
        for split in splits
        for image in load_split(folder, split, schema)[0]
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return folder, ingest(DataConfig(dataset="digits", shards=3), 0, folder, _no_progress)


def test_every_digit_is_in_exactly_one_split(digits):
    folder, schema = digits
    images = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    expected = collections.Counter(image.tobytes() for image in images)
    assert _pixel_counts(folder, schema, ("train", "validation", "test")) == expected
    assert sum(schema.split_sizes.values()) == 1797
    assert abs(schema.split_sizes["test"] - 0.2 * 1797) < 4 * np.sqrt(1797 * 0.2 * 0.8)
    # Published figures rest on this division.
    assert schema.split_sizes == {"train": 1300, "validation": 141, "test": 356}
    # A tenth of the four fifths that are not for testing.
    assert abs(schema.split_sizes["validation"] - 0.08 * 1797) < 4 * np.sqrt(1797 * 0.08 * 0.92)


def test_files_written(digits):
    folder, schema = digits
    shards = {
        f"{split}-{index:05d}-of-00003.tfrecord"
        for split in ("train", "validation", "test")
        for index in range(3)
    }
    assert {path.name for path in folder.iterdir()} == {*shards, "schema.json", "statistics.json"}
    assert read_schema(folder) == schema
    assert schema.class_names == tuple("0123456789")
    assert find_anomalies(folder, schema) == []


def test_statistics_are_of_the_split(digits):
    folder, schema = digits
    statistics = json.loads((folder / "statistics.json").read_text())
    images, labels = load_split(folder, "validation", schema)
    counts = collections.Counter(labels.tolist())
    assert statistics["validation"]["class_counts"] == {str(i): counts[i] for i in range(10)}
    assert statistics["validation"]["mean"] == [pytest.approx(images.mean(), rel=1e-5)]
    assert statistics["validation"]["std"] == [pytest.approx(images.std(), rel=1e-5)]


def _digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


def test_same_seed_writes_the_same_bytes(digits, tmp_path):
    folder, _ = digits
    ingest(DataConfig(dataset="digits", shards=3), 0, tmp_path, _no_progress)
    assert _digests(tmp_path) == _digests(folder)


def test_another_seed_splits_otherwise(digits, tmp_path):
    folder, schema = digits
    other = ingest(DataConfig(dataset="digits", shards=3), 1, tmp_path, _no_progress)
    both = _pixel_counts(folder, schema, ["test"]) & _pixel_counts(tmp_path, other, ["test"])
    # Independent choices of a fifth of 1,797 agree on 72 images, give or take 8.
    assert abs(both.total() - 72) < 32


def test_given_test_split_stays_whole_and_validation_comes_from_train(tmp_path, monkeypatch):
    train, test = _random_pairs(1, 200), _random_pairs(2, 30)
    _use_source(monkeypatch, train, test)
    schema = ingest(DataConfig(), 0, tmp_path, _no_progress)
    expected = collections.Counter(image.tobytes() for image, _ in test)
    assert _pixel_counts(tmp_path, schema, ["test"]) == expected
    expected = collections.Counter(image.tobytes() for image, _ in train)
    assert _pixel_counts(tmp_path, schema, ["train", "validation"]) == expected
    assert 5 <= schema.split_sizes["validation"] <= 40


def test_order_of_the_source_is_kept(tmp_path, monkeypatch):
    train = [(np.full((2, 2, 1), value, np.uint8), 0) for value in range(250)]
    _use_source(monkeypatch, train)
    schema = ingest(DataConfig(), 0, tmp_path, _no_progress)
    for split in ("train", "validation", "test"):
        values = load_split(tmp_path, split, schema)[0][:, 0, 0, 0]
        assert (np.diff(values) > 0).all()


def test_copies_of_an_image_are_never_divided(tmp_path, monkeypatch):
    originals = _random_pairs(3, 100)
    _use_source(monkeypatch, originals * 3)
    schema = ingest(DataConfig(), 0, tmp_path, _no_progress)
    for split in ("train", "validation", "test"):
        assert set(_pixel_counts(tmp_path, schema, [split]).values()) == {3}
    assert "leakage" not in {anomaly.kind for anomaly in find_anomalies(tmp_path, schema)}
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    copies = sum(split["exact_duplicates"] for split in statistics.values())
    assert copies == 200


@pytest.mark.parametrize("has_test", [True, False])
def test_limits(tmp_path, monkeypatch, has_test):
    train = [(np.full((2, 2, 1), value, np.uint8), 0) for value in range(250)]
    test = [(np.full((2, 2, 1), 255 - value, np.uint8), 0) for value in range(250)]
    _use_source(monkeypatch, train, test if has_test else None)
    config = DataConfig(max_train_examples=60, max_test_examples=12)
    schema = ingest(config, 0, tmp_path, _no_progress)
    assert schema.split_sizes["train"] + schema.split_sizes["validation"] == 60
    assert schema.split_sizes["test"] == 12
    if has_test:
        found = _pixel_counts(tmp_path, schema, ["train", "validation"])
        assert found == collections.Counter(image.tobytes() for image, _ in train[:60])
        found = _pixel_counts(tmp_path, schema, ["test"])
        assert found == collections.Counter(image.tobytes() for image, _ in test[:12])


def test_reading_stops_at_the_limit(tmp_path, monkeypatch):
    class Endless(list):
        def __iter__(self):
            yield from super().__iter__()
            raise RuntimeError("read on")

    _use_source(monkeypatch, Endless(_random_pairs(1, 61)), Endless(_random_pairs(2, 5)))
    config = DataConfig(max_train_examples=60, max_test_examples=5)
    assert ingest(config, 0, tmp_path, _no_progress).split_sizes["test"] == 5


def test_progress_ends_with_the_sizes(tmp_path, monkeypatch):
    _use_source(monkeypatch, _random_pairs(1, 1200))
    calls = []
    schema = ingest(DataConfig(), 0, tmp_path, lambda *call: calls.append(call[:2]))
    assert dict(calls) == {f"{split} images": size for split, size in schema.split_sizes.items()}
    assert ("train images", 500) in calls


@pytest.mark.parametrize(
    ("config", "train_count", "test_count", "split"),
    [
        (DataConfig(max_train_examples=1, validation_fraction=0.01), 50, 5, "validation"),
        (DataConfig(), 50, 0, "test"),
        (DataConfig(validation_fraction=0.01, test_fraction=0.01), 2, None, "validation"),
    ],
)
def test_empty_split_is_an_error_and_leaves_no_shards(
    tmp_path, monkeypatch, config, train_count, test_count, split
):
    test = None if test_count is None else _random_pairs(2, test_count)
    _use_source(monkeypatch, _random_pairs(1, train_count), test)
    with pytest.raises(SfmError, match=f"No image of dataset 'digits' falls into split '{split}'"):
        ingest(config, 0, tmp_path, _no_progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "label", "message"),
    [
        ((4, 5, 1), 0, r"has shape \(4, 5, 1\); expected \(4, 4, 1\) .* Give --image_size"),
        ((4, 4, 1), -1, "has label -1; expected 0 to 9"),
        ((4, 4, 1), 10, "has label 10; expected 0 to 9"),
    ],
)
def test_image_that_does_not_fit_is_named_and_leaves_no_shards(
    tmp_path, monkeypatch, shape, label, message
):
    _use_source(monkeypatch, [*_random_pairs(1, 50), (np.zeros(shape, np.uint8), label)])
    with pytest.raises(SfmError, match=f"Image 'train 50' {message}"):
        ingest(DataConfig(), 0, tmp_path, _no_progress)
    assert list(tmp_path.iterdir()) == []


def _write_photos(folder, counts, side=8):
    """Writes so many random images of each class."""
    generator = np.random.default_rng(sum(counts.values()))
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for index in range(count):
            image = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            assert cv2.imwrite(os.fspath(folder / label / f"{index}.png"), image)


def _photos(folder, **values):
    return DataConfig(dataset="image_folder", source=os.fspath(folder), shards=1, **values)


@pytest.mark.parametrize("seed", range(5))
def test_small_folder_has_each_class_in_each_split(tmp_path, seed):
    _write_photos(tmp_path / "photos", {"cat": 14, "dog": 14, "eel": 3})
    schema = ingest(_photos(tmp_path / "photos"), seed, tmp_path / "records", _no_progress)
    assert schema.split_sizes == {"train": 10 + 10 + 1, "validation": 3, "test": 3 + 3 + 1}
    assert find_anomalies(tmp_path / "records", schema) == []


def test_classes_of_one_image_are_refused_with_advice_that_helps(tmp_path):
    _write_photos(tmp_path / "photos", {"cat": 1, "dog": 1})
    with pytest.raises(SfmError, match="'validation' .*; use more images: a class needs a differ"):
        ingest(_photos(tmp_path / "photos"), 0, tmp_path / "records", _no_progress)


def test_class_that_is_too_small_is_told_how_many_images_to_add(tmp_path):
    _write_photos(tmp_path / "photos", {"cat": 10, "dog": 10, "eel": 1})
    schema = ingest(_photos(tmp_path / "photos"), 0, tmp_path / "records", _no_progress)
    messages = [anomaly.message for anomaly in find_anomalies(tmp_path / "records", schema)]
    assert messages == [
        f"Class 'eel' has no image in split '{split}' and 1 in all; add at least 2, so that it has "
        "one for each split."
        for split in ("validation", "test")
    ]


def test_given_validation_split_stays_whole_and_test_comes_from_train(tmp_path):
    _write_photos(tmp_path / "photos" / "train", {"cat": 20, "dog": 10})
    _write_photos(tmp_path / "photos" / "val", {"cat": 5, "dog": 2})
    schema = ingest(_photos(tmp_path / "photos"), 0, tmp_path / "records", _no_progress)
    assert schema.split_sizes == {"train": 24, "validation": 7, "test": 6}


def test_stratified_source_keeps_to_limits_and_copies_together(tmp_path, monkeypatch):
    pairs = _random_pairs(5, 200)
    _use_source(monkeypatch, pairs * 2, is_stratified=True)
    config = DataConfig(max_train_examples=100, max_test_examples=20)
    schema = ingest(config, 0, tmp_path, _no_progress)
    assert schema.split_sizes == {"train": 90, "validation": 10, "test": 20}
    schema = ingest(DataConfig(), 0, tmp_path / "all", _no_progress)
    assert schema.split_sizes == {"train": 280, "validation": 40, "test": 80}
    assert find_anomalies(tmp_path / "all", schema) == []


def test_all_problems_are_reported_in_one_line_and_leave_no_shards(tmp_path):
    _write_photos(tmp_path / "photos" / "train", {"cat": 9, "dog": 9})
    _write_photos(tmp_path / "photos" / "test", {"cat": 9, "dog": 9}, side=9)
    for name in ("train/notes.txt", "train/cat/x.png", "test/dog/y.png"):
        (tmp_path / "photos" / name).write_bytes(b"")
    with pytest.raises(SfmError) as info:
        ingest(_photos(tmp_path / "photos"), 0, tmp_path / "records", _no_progress)
    message = str(info.value)
    assert message.startswith("Found 21 problems. (1) Unexpected ")
    assert message.endswith("And 11 more.")
    assert "\n" not in message
    assert list((tmp_path / "records").iterdir()) == []


def test_what_is_passed_over_is_said_once(tmp_path):
    _write_photos(tmp_path / "photos", {"cat": 9, "dog": 9})
    for name in ("Thumbs.db", "cat/desktop.ini"):
        (tmp_path / "photos" / name).write_bytes(b"")
    calls = []
    ingest(_photos(tmp_path / "photos"), 0, tmp_path / "records", lambda *call: calls.append(call))
    assert calls.count(("files of file managers passed over", 2, None)) == 1


def test_image_folder_end_to_end(tmp_path):
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(40):
            side = 8 + index % 3
            image = generator.integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
            path = tmp_path / "photos" / label / f"{index}.png"
            assert cv2.imwrite(os.fspath(path), image)
    config = DataConfig(
        dataset="image_folder", source=os.fspath(tmp_path / "photos"), image_size=6, shards=1
    )
    schema = ingest(config, 0, tmp_path / "records", _no_progress)
    assert schema == Schema(6, 6, 3, ("cat", "dog"), schema.split_sizes)
    assert sum(schema.split_sizes.values()) == 80
    assert find_anomalies(tmp_path / "records", schema) == []


@pytest.mark.skipif(
    "SFM_TF_CIFAR10_DATA_DIR" not in os.environ,
    reason="set SFM_TF_CIFAR10_DATA_DIR to the folder of prepared CIFAR-10",
)
def test_real_cifar10(tmp_path):
    config = DataConfig(
        dataset="cifar10",
        data_dir=os.environ["SFM_TF_CIFAR10_DATA_DIR"],
        max_train_examples=500,
        max_test_examples=100,
    )
    schema = ingest(config, 0, tmp_path, _no_progress)
    assert schema.split_sizes["train"] + schema.split_sizes["validation"] == 500
    assert find_anomalies(tmp_path, schema) == []
