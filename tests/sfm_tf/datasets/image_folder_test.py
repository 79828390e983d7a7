import collections
import os
import re
import shutil

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


def _zip(folder):
    """Packs a folder, with its name around all names; returns the file."""
    return shutil.make_archive(os.fspath(folder), "zip", folder.parent, folder.name)


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


def _read_all(source):
    """Reads every image; returns what is wrong."""
    for read in source.splits.values():
        collections.deque(read(), maxlen=0)
    return source.problems


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        pytest.param(*case, id=case[0])
        for case in [
            (
                "cat/notes.txt",
                b"",
                r"Unexpected .*/photos/cat/notes\.txt; expected only \.png, \.j",
            ),
            ("cat/kittens/a.png", b"", r"Unexpected folder .*/photos/cat/kittens; expected a fol"),
            ("labels.csv", b"", r"Unexpected .*/photos/labels\.csv; expected only folders there"),
            ("eel/.hidden", b"", r"Class folder without an image: .*/photos/eel; add some or rem"),
            ("cat/a.png", b"", r"Cannot read .*/photos/cat/a\.png: expected a PNG or JPEG image"),
            ("dog/a.png", _HALF, r"Cannot decode .*/photos/dog/a\.png: the image is damaged"),
            ("cat/wide.png", _WIDE, r"wide\.png has 8193x1 pixels; expected at most 8192"),
            ("cat/a\nb\x1b.png", b"", r"Cannot read .*/photos/cat/a\\nb\\x1b\.png: expected"),
        ]
    ],
)
def test_what_is_wrong_is_named_and_the_others_are_read(tmp_path, name, data, message):
    folder = tmp_path / "photos"
    images = _fill(folder, {"dog": 2, "cat": 2})
    _write(folder / name, data)
    source = _open(folder)
    _check(source, "train", images)
    (problem,) = source.problems
    assert re.search(message, problem)


def test_all_that_is_wrong_is_found_in_one_reading(tmp_path):
    _fill(tmp_path, {"dog": 2, "cat": 2})
    for name in ("README.txt", "cat/Notes.TXT", "cat/a.txt", "dog/in/b.png", "dog/in/c.png"):
        _write(tmp_path / name, b"")
    damaged = [tmp_path / "dog" / f"damaged {index}.png" for index in range(5)]
    for path in damaged:
        _write(path, _HALF)
    (tmp_path / "dog" / "nowhere.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "eel").mkdir()
    (tmp_path / "fox" / "in").mkdir(parents=True)
    problems = " ".join(_read_all(_open(tmp_path)))
    strays = (
        "README.txt",
        "cat/Notes.TXT",
        "cat/a.txt",
        "dog/in",
        "dog/nowhere.png",
        "eel",
        "fox/in",
    )
    for path in strays:
        assert problems.count(f"{tmp_path}/{path}") == 1
    assert all(os.fspath(path) in problems for path in damaged)


@pytest.mark.parametrize(
    "name",
    ["Thumbs.db", "desktop.ini", ".DS_Store", "._a.png", "@eaDir/a.png/t.jpg", "__MACOSX/._a.png"],
)
@pytest.mark.parametrize("folder", ["", "cat/"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_files_of_file_managers_are_passed_over_and_counted(tmp_path, name, folder, packed):
    images = _fill(tmp_path / "photos", {"dog": 3, "cat": 4})
    _write(tmp_path / "photos" / f"{folder}{name}", b"no image")
    source = _open(_zip(tmp_path / "photos") if packed else tmp_path / "photos")
    _check(source, "train", images)
    assert (source.class_names, source.passed_over) == (("cat", "dog"), 1)
    assert source.problems == []


@pytest.mark.parametrize(
    "splits",
    [
        {"Train": "train", "Test": "test"},
        {"TRAINING": "train", "testing": "test", "Val": "validation"},
        {"train": "train", "valid": "validation"},
    ],
    ids=["capital", "long", "without_test"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_usual_names_of_splits(tmp_path, splits, packed):
    images = {name: _fill(tmp_path / "photos" / name, {"dog": 2, "cat": 3}) for name in splits}
    source = _open(_zip(tmp_path / "photos") if packed else tmp_path / "photos")
    assert set(source.splits) == set(splits.values())
    for name, split in splits.items():
        _check(source, split, images[name])
    assert source.problems == []


@pytest.mark.parametrize("around", ["", "photos/", "my/photos/"])
def test_zip_file_reads_as_the_folder(tmp_path, around):
    images = _fill(tmp_path / "root" / around, {"dog": 3, "cat": 4})
    packed, unpacked = _open(_zip(tmp_path / "root")), _open(tmp_path / "root")
    _check(packed, "train", images)
    assert [record.key for record in packed.splits["train"]()] == [
        record.key for record in unpacked.splits["train"]()
    ]


def test_linked_folders_and_files_are_read(tmp_path):
    images = _fill(tmp_path / "elsewhere", {"dog": 3, "cat": 4})
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    for path in (tmp_path / "elsewhere" / "cat").iterdir():
        (tmp_path / "photos" / "cat" / path.name).symlink_to(path)
    _check(_open(tmp_path / "photos"), "train", images)


@pytest.mark.parametrize(
    ("folder", "class_name"),
    [
        (b"caf\xe9", "caf\\xe9"),
        (b"two\nlines", "two\\nlines"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        ("a\u0308".encode(), "ä"),
        (b" space ", " space "),
        (b"x" * 255, "x" * 255),
    ],
    ids=["latin_1", "line_end", "escape", "two_letters", "space", "long"],
)
def test_class_names_are_printable(tmp_path, folder, class_name):
    _fill(tmp_path, {"dog": 1})
    _write(tmp_path / os.fsdecode(folder) / os.fsdecode(b"\xe9.png"), _png(_pixels(1)))
    source = _open(tmp_path)
    assert set(source.class_names) == {"dog", class_name}
    keys = {record.key for record in source.splits["train"]()}
    assert keys == {"train/dog/image 0.png", f"train/{class_name}/\\xe9.png"}


def test_numbers_in_names_of_classes_are_ordered_as_numbers(tmp_path):
    _fill(tmp_path, dict.fromkeys(("10", "2", "1", "b", "a10", "a9", "a", "01"), 1))
    assert _open(tmp_path).class_names == ("01", "1", "2", "10", "a", "a9", "a10", "b")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "Found 0 class folders .*; expected at least two"),
        ({".": {"dog": 2}}, "Found 1 class folders .*; expected at least two"),
        (
            {"Test": {"dog": 2, "cat": 2}},
            r"Unexpected folder .*/Test/cat, .*/Test/dog; expected a folder of images per class, "
            "or folders train, validation and test",
        ),
        (
            {"train": {"dog": 2, "cat": 2}, "Training": {"dog": 2}},
            "Found Training and train in .*, all of split train; expected one",
        ),
    ],
    ids=["empty", "one_class", "no_train", "two_of_one_split"],
)
def test_other_layouts_are_refused(tmp_path, layout, message):
    for split, counts in layout.items():
        _fill(tmp_path / split, counts)
    with pytest.raises(SfmError, match=message):
        _open(tmp_path)


@pytest.mark.parametrize(
    ("split", "counts", "message"),
    [
        ("test", {"eel": 2}, "Classes eel of .* are in test but not in train"),
        ("others", {"dog": 2}, "Unexpected .*/others; expected only folders train, validation an"),
        ("test", {}, "Empty folder .*/test; add images or remove it"),
    ],
    ids=["class", "split", "empty"],
)
def test_what_does_not_belong_beside_train_is_a_problem(tmp_path, split, counts, message):
    _fill(tmp_path / "train", {"dog": 2, "cat": 2})
    (tmp_path / split).mkdir()
    _fill(tmp_path / split, counts)
    (problem,) = _read_all(_open(tmp_path))
    assert re.match(message, problem)


def test_no_image_can_be_read(tmp_path):
    for name in ("dog/a.png", "cat/b.png"):
        _write(tmp_path / name, b"")
    with pytest.raises(SfmError, match=r"^Found 2 problems\. \(1\) .*/cat/b.*\(2\) .*/dog/a"):
        _open(tmp_path)


@pytest.mark.parametrize("source", ["", "/nonexistent/photos"])
def test_no_folder(source):
    with pytest.raises(SfmError, match=f"No folder '{source}'; give --source"):
        open_source(DataConfig(dataset="image_folder", source=source))
