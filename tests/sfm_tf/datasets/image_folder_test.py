import os

import cv2
import numpy as np
import pytest

from sfm_tf.datasets.image_folder import open_source
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.errors import SfmError


def _pixels(seed, height=6, width=8):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _png(pixels):
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def _write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _fill(folder, counts):
    """Writes so many images of each class; returns their pixels by path."""
    images = {
        f"{label}/image {index}.png": _pixels(1000 * number + index)
        for number, (label, count) in enumerate(counts.items())
        for index in range(count)
    }
    for name, pixels in images.items():
        _write(folder / name, _png(pixels))
    return images


def _open(folder):
    return open_source(DataConfig(dataset="image_folder", source=os.fspath(folder)))


def _check(source, split, images):
    records = list(source.splits[split]())
    assert sorted(record.key for record in records) == sorted(f"{split}/{name}" for name in images)
    for record in records:
        name = record.key.removeprefix(f"{split}/")
        np.testing.assert_array_equal(record.image, images[name])
        assert source.class_names[record.label] == name.split("/")[0]


def test_split_folders(tmp_path):
    train = _fill(tmp_path / "train", {"dog": 3, "cät": 4})
    test = _fill(tmp_path / "test", {"cät": 2})
    source = _open(tmp_path)
    assert source.class_names == ("cät", "dog")
    assert (source.height, source.width, source.channels) == (6, 8, 3)
    _check(source, "train", train)
    _check(source, "test", test)


def test_class_folders_alone_are_all_training_images(tmp_path):
    images = _fill(tmp_path, {"dog": 3, "cat": 4})
    source = _open(tmp_path)
    assert list(source.splits) == ["train"]
    _check(source, "train", images)


def test_train_can_be_a_class(tmp_path):
    images = _fill(tmp_path, {"train": 3, "car": 4})
    source = _open(tmp_path)
    assert source.class_names == ("car", "train")
    _check(source, "train", images)


def test_hidden_files_and_folders_are_left_out(tmp_path):
    images = _fill(tmp_path, {"dog": 3, "cat": 4})
    (tmp_path / ".git").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"")
    (tmp_path / "cat" / "._image 0.png").write_bytes(b"no image")
    source = _open(tmp_path)
    assert source.class_names == ("cat", "dog")
    _check(source, "train", images)


def test_order_is_fixed_and_mixes_classes(tmp_path):
    _fill(tmp_path, {"dog": 40, "cat": 40})
    source = _open(tmp_path)
    first, again = (
        [(record.key, record.label) for record in source.splits["train"]()] for _ in range(2)
    )
    assert first == again
    assert 5 <= sum(label for _, label in first[:20]) <= 15


def test_jpeg_and_grey_become_rgb(tmp_path):
    _fill(tmp_path, {"dog": 1})
    grey = _pixels(5)[..., 0]
    (tmp_path / "cat").mkdir()
    assert cv2.imwrite(os.fspath(tmp_path / "cat" / "grey.PNG"), grey)
    assert cv2.imwrite(os.fspath(tmp_path / "cat" / "colour.jpeg"), np.full((6, 8, 3), 128))
    records = {record.key: record.image for record in _open(tmp_path).splits["train"]()}
    np.testing.assert_array_equal(records["train/cat/grey.PNG"], np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(records["train/cat/colour.jpeg"], np.full((6, 8, 3), 128))


_HALF = _png(_pixels(0))[:90]
_WIDE = _png(np.zeros((1, 8193, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cat/notes.txt", b"", r"/photos/cat/notes\.txt; expected only \.png, \.jpg, \.jpeg"),
        ("cat/kittens/a.png", b"", r"Unexpected .*/photos/cat/kittens; expected only"),
        ("labels.csv", b"", r"Unexpected .*/photos/labels\.csv; expected only folders"),
        ("eel/.hidden", b"", r"Class folder .*/photos/eel has no image"),
        ("cat/a.png", b"", r"Cannot read .*/photos/cat/a\.png: expected a PNG or JPEG image"),
        ("dog/a.png", _HALF, r"Cannot decode .*/photos/dog/a\.png: the image is damaged"),
        ("cat/wide.png", _WIDE, r"wide\.png has 8193x1 pixels; expected at most 8192"),
    ],
)
def test_bad_folder_is_named(tmp_path, name, data, message):
    folder = tmp_path / "photos"
    _fill(folder, {"dog": 2, "cat": 2})
    _write(folder / name, data)
    with pytest.raises(SfmError, match=message):
        list(_open(folder).splits["train"]())


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "Found 0 class folders .*; expected at least two"),
        ({".": {"dog": 2}}, "Found 1 class folders .*; expected at least two"),
        (
            {"train": {"dog": 2, "cat": 2}, "test": {"eel": 2}},
            "Classes eel of .* are in test but not in train",
        ),
        (
            {"train": {"dog": 2, "cat": 2}, "val": {"dog": 2}},
            "Unexpected .*/val; expected only train and test",
        ),
    ],
)
def test_other_layouts_are_refused(tmp_path, layout, message):
    for split, counts in layout.items():
        _fill(tmp_path / split, counts)
    with pytest.raises(SfmError, match=message):
        _open(tmp_path)


@pytest.mark.parametrize("source", ["", "/nonexistent/photos"])
def test_no_folder(source):
    with pytest.raises(SfmError, match=f"No folder '{source}'; give --source"):
        open_source(DataConfig(dataset="image_folder", source=source))
