import collections
import os
import zipfile

import cv2
import numpy as np
import pytest

from sfm_tf.datasets.settings import DataConfig
from sfm_tf.datasets.tiny_imagenet import open_source
from sfm_tf.errors import SfmError

_WNIDS = ("n03", "n01", "n02")
_GREY = "train/n01/images/n01_0.JPEG"


def _pixels(seed, side=64):
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def _jpeg(pixels):
    _, encoded = cv2.imencode(".jpg", pixels)
    return encoded.tobytes()


def _files():
    """The official layout with three classes, three training and two validation images each."""
    files = {
        "words.txt": b"n01\tcrane, bird\nn02\tcrane\nn03\tking penguin, other\nn99\tunused\n",
        "wnids.txt": "\n".join(_WNIDS).encode() + b"\n",
    }
    annotations = []
    for seed, wnid in enumerate(_WNIDS):
        for index in range(3):
            files[f"train/{wnid}/images/{wnid}_{index}.JPEG"] = _jpeg(_pixels(10 * seed + index))
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"n01_0.JPEG\t0\t0\t10\t10\n"
        for index in range(2):
            name = f"val_{2 * seed + index}.JPEG"
            files[f"val/images/{name}"] = _jpeg(_pixels(100 + 10 * seed + index))
            annotations.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    files["test/images/test_0.JPEG"] = b"not read"
    files[_GREY] = _jpeg(_pixels(10)[..., 0])
    return files


def _zip(path, files, root="tiny-imagenet-200/"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(root + name, data)
    return path


def _folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def _config(tmp_path, source=""):
    return DataConfig(
        dataset="tiny_imagenet", data_dir=os.fspath(tmp_path / "data"), source=os.fspath(source)
    )


def _check_source(source):
    # Two classes share their first word.
    assert source.class_names == ("king penguin", "crane (n01)", "crane (n02)")
    assert (source.height, source.width, source.channels) == (64, 64, 3)
    files = _files()
    for split, folder, count in (("train", "train/", 9), ("test", "val/images/", 6)):
        records = list(source.splits[split]())
        assert len({record.key for record in records}) == len(records) == count
        for record in records:
            assert record.key.startswith(folder)
            data = np.frombuffer(files[record.key], np.uint8)
            expected = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
            np.testing.assert_allclose(
                record.image.astype(int), expected.astype(int), rtol=0, atol=2
            )
    train = {record.key: record.label for record in source.splits["train"]()}
    assert all(_WNIDS[label] == key.split("/")[1] for key, label in train.items())
    test = {record.key: record.label for record in source.splits["test"]()}
    assert test == {f"val/images/val_{i}.JPEG": i // 2 for i in range(6)}


def test_zip(tmp_path):
    path = _zip(tmp_path / "sample.zip", _files())
    source = open_source(_config(tmp_path, path))
    _check_source(source)
    grey = next(record for record in source.splits["train"]() if record.key == _GREY)
    np.testing.assert_array_equal(grey.image[..., 0], grey.image[..., 2])
    assert {child.name for child in tmp_path.iterdir()} == {"sample.zip", "data"}


_TEXTS = ("wnids.txt", "words.txt", "val/val_annotations.txt")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\t", b" \t ").replace(b"\n", b" \n\n"),
    ],
    ids=["byte_order_mark", "line_ends", "spaces"],
)
def test_texts_of_other_editors(tmp_path, change):
    files = _files()
    files |= {name: change(files[name]) for name in _TEXTS}
    _check_source(open_source(_config(tmp_path, _zip(tmp_path / "sample.zip", files))))


def test_names_are_printable(tmp_path):
    odd = os.fsdecode(b"train/n01/images/\xe9\n.JPEG")
    files = {**_files(), odd: _jpeg(_pixels(0)), "words.txt": b"n01\t\x1b[31mred\nn02\t, x\n"}
    source = open_source(_config(tmp_path, _folder(tmp_path / "raw", files)))
    assert source.class_names == ("n03", r"\x1b[31mred", "n02")
    assert r"train/n01/images/\xe9\n.JPEG" in {record.key for record in source.splits["train"]()}


@pytest.mark.parametrize("root", ["", "tiny-imagenet-200"])
def test_folder(tmp_path, root):
    _folder(tmp_path / "raw" / root, _files())
    _check_source(open_source(_config(tmp_path, tmp_path / "raw")))


def test_official_archive_among_manual_downloads(tmp_path):
    _zip(tmp_path / "data/downloads/manual/tiny-imagenet-200.zip", _files())
    _check_source(open_source(_config(tmp_path)))


def test_is_prepared_once_for_each_archive(tmp_path):
    path = _zip(tmp_path / "sample.zip", _files())

    def prepared():
        open_source(_config(tmp_path, path))
        files = (tmp_path / "data" / "tiny_imagenet").rglob("*train.tfrecord*")
        return {file: file.stat().st_mtime_ns for file in files}

    first = prepared()
    assert len(first) == 1
    assert prepared() == first
    _zip(path, {**_files(), _GREY: _jpeg(_pixels(55))})
    assert len(prepared()) == 2


_REPLACED = {
    "large": ({_GREY: _jpeg(_pixels(0, side=65))}, r"n01_0\.JPEG has 65x65 pixels; expected 64x64"),
    "no image": ({_GREY: b"GIF89a"}, r"Cannot read train/n01/images/n01_0\.JPEG"),
    "several": (
        {_GREY: b"", "train/n02/images/n02_0.JPEG": b""},
        r"^Found 2 problems\. \(1\) Cannot read .*n01_0\.JPEG.* \(2\) Cannot read .*n02_0\.JPEG",
    ),
    "cut off": (
        {_GREY: _jpeg(_pixels(0))[:-100]},
        r"Cannot decode train/n01/images/n01_0\.JPEG: the image is damaged",
    ),
    "empty class": ({"wnids.txt": b"n01\nn04\n"}, "class n04 has no image in train/n04/images"),
    "class twice": ({"wnids.txt": b"n01\nn01\n"}, "expected distinct classes in wnids.txt"),
    "no class": ({"wnids.txt": b"\n"}, "expected distinct classes in wnids.txt"),
    "no text": ({"words.txt": b"\xff\xfe"}, "words.txt is not text in UTF-8 .*; save it as UTF-8"),
    "Latin-1": ({"wnids.txt": b"caf\xe9\n"}, "wnids.txt is not text in UTF-8"),
    "no annotation": (
        {"val/val_annotations.txt": b""},
        "annotations.txt is empty; expected a",
    ),
    "image twice": (
        {"val/val_annotations.txt": b"val_0.JPEG\tn01\nval_0.JPEG\tn02\n"},
        "val_annotations.txt has 'val_0.JPEG' twice",
    ),
    "unknown class": (
        {"val/val_annotations.txt": b"val_0.JPEG\tn05\t0\t0\t1\t1\n"},
        "gives 'val_0.JPEG' the class 'n05'; expected one of wnids.txt",
    ),
    "bare name": ({"val/val_annotations.txt": b"val_0.JPEG\n"}, "the class ''"),
    "missing image": (
        {"val/val_annotations.txt": b"val_77.JPEG\tn01\t0\t0\t1\t1\n"},
        r"lacks tiny-imagenet-200/val/images/val_77\.JPEG",
    ),
    "image elsewhere": (
        {"val/val_annotations.txt": b"../../../etc/passwd\tn01\t0\t0\t1\t1\n"},
        "lacks tiny-imagenet-200/val/images/../../../etc/passwd",
    ),
    "member outside": ({"../../evil.JPEG": b""}, "expected relative names"),
    "no list of classes": ({"wnids.txt": None}, "wnids.txt"),
    "no list of words": ({"words.txt": None}, "words.txt"),
    "no list of images": ({"val/val_annotations.txt": None}, "val_annotations.txt"),
}


@pytest.mark.parametrize(("replaced", "message"), _REPLACED.values(), ids=_REPLACED)
def test_damage_is_named_and_nothing_is_prepared(tmp_path, replaced, message):
    files = {**_files(), **replaced}
    path = _zip(
        tmp_path / "sample.zip", {name: data for name, data in files.items() if data is not None}
    )
    with pytest.raises(SfmError, match=message) as info:
        open_source(_config(tmp_path, path))
    assert "\n" not in str(info.value)
    data = tmp_path / "data"
    assert [file for file in data.rglob("*") if file.is_file()] == []


def test_missing_archive_says_what_to_put_where(tmp_path):
    manual = tmp_path / "data" / "downloads" / "manual"
    with pytest.raises(
        SfmError, match=f"No Tiny ImageNet at {manual}/tiny-imagenet-200.zip; give --source"
    ):
        open_source(_config(tmp_path))


def test_folders_that_are_not_utf8(tmp_path):
    odd = tmp_path / os.fsdecode(b"\xe9")
    _check_source(open_source(_config(tmp_path, _folder(odd, _files()))))
    config = DataConfig(dataset="tiny_imagenet", data_dir=os.fspath(odd), source=os.fspath(odd))
    with pytest.raises(SfmError, match=r"Invalid --data_dir .*/\\xe9; expected a path in UTF-8"):
        open_source(config)


@pytest.mark.skipif(
    "SFM_TF_TINY_IMAGENET" not in os.environ,
    reason="set SFM_TF_TINY_IMAGENET to an archive or folder of Tiny ImageNet",
)
def test_real_archive(tmp_path):
    source = open_source(_config(tmp_path, os.environ["SFM_TF_TINY_IMAGENET"]))
    counts = collections.Counter(record.label for record in source.splits["train"]())
    assert set(counts) == set(range(len(source.class_names)))
    assert min(counts.values()) == max(counts.values())
