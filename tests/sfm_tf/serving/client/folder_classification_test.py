import csv
import json
import os
import pathlib

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client import model_client
from sfm_tf.serving.client.folder_classification import (
    FileRow,
    check_output,
    classify_folder,
    find_images,
    read_class_names,
    write_rows,
)
from sfm_tf.serving.client.model_client import ModelClient


class _Server(ModelClient):
    """Finds class 1 in files that begin with 1, and cannot decode those that are empty."""

    def __init__(self):
        super().__init__("nowhere", "m")
        self.__dict__["sizes"] = []

    def _predict(self, signature_name, input_name, values):
        assert (signature_name, input_name) == ("predict_bytes", "image_bytes")
        self.sizes.append(len(values))
        return {
            "class_id": [int(value.startswith(b"1")) if value else -1 for value in values],
            "probabilities": [[0.25, 0.75]] * len(values),
            "logits": [[0.0, 0.0]] * len(values),
            "status": [0 if value else 1 for value in values],
        }

    def _get_status(self):
        raise NotImplementedError

    def _get_metadata(self):
        raise NotImplementedError


def _fill(folder: pathlib.Path, **contents):
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".png").write_bytes(content)


def test_finds_images_in_all_visible_folders_sorted(tmp_path):
    for name in ("b.JPG", "a.png", "c/d.jpeg", "notes.txt", ".hidden.png", ".git/e.png", "f.gif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.png", "b.JPG", "c/d.jpeg"]


def test_every_file_gets_its_row_in_order(tmp_path):
    _fill(tmp_path, a=b"1", b=b"", c=b"0", d__e=b"1")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    scores = (0.25, 0.75)
    assert classify_folder(_Server(), tmp_path) == [
        FileRow("a.png", "classified", 1, scores),
        FileRow("b.png", "cannot be decoded as PNG or JPEG"),
        FileRow("c.png", "classified", 0, scores),
        FileRow("d/e.png", "classified", 1, scores),
        FileRow("gone.png", "not sent: No such file or directory"),
        FileRow("pipe.png", "not sent: no regular file"),
    ]


def test_batches_are_bounded_and_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(model_client, "LARGEST_REQUEST", 100)
    monkeypatch.setattr(model_client, "LARGEST_FILE", 80)
    _fill(tmp_path, a=b"1", b=b"1", c=b"1", d=b"1" * 80, e=b"1" * 60, f=b"1" * 81)
    server, told = _Server(), []
    rows = classify_folder(server, tmp_path, 3, lambda done, total: told.append((done, total)))
    # The last file is too large to be sent, so that the batch with it holds one less.
    assert server.sizes == [3, 1, 1]
    assert told == [(3, 6), (4, 6), (6, 6)]
    assert rows[-1] == FileRow("f.png", "not sent: over 80 bytes")


def test_the_server_is_not_asked_when_no_file_can_be_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(model_client, "LARGEST_FILE", 0)
    _fill(tmp_path, a=b"1")
    server = _Server()
    assert [row.class_id for row in classify_folder(server, tmp_path)] == [None]
    assert server.sizes == []


def test_names_that_are_no_text_can_still_be_told_apart(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff\n\xc3\xa9.png", "wb") as file:
        file.write(b"1")
    (row,) = classify_folder(_Server(), tmp_path)
    assert row.file == "\\xff\n\u00e9.png"


@pytest.mark.parametrize(
    ("name", "message"), [("empty", "No image in .*empty'"), ("gone", "Cannot read .*gone'")]
)
def test_a_folder_without_images_is_named(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SfmError, match=message):
        classify_folder(_Server(), tmp_path / name)


def test_the_batch_size_is_checked_before_anything_is_read(tmp_path):
    with pytest.raises(SfmError, match="Invalid batch_size 0"):
        classify_folder(_Server(), tmp_path / "gone", 0)


_ROWS = [
    FileRow("a/cat.png", "classified", 1, (0.25, 0.75)),
    FileRow("b.png", "cannot be decoded as PNG or JPEG"),
]


def test_csv_has_a_row_per_file(tmp_path):
    write_rows(tmp_path / "out.csv", _ROWS, ("cat", "dog"))
    assert (tmp_path / "out.csv").read_text() == (
        '"file","status","class_id","class_name","probability"\n'
        '"a/cat.png","classified",1,"dog",0.75\n'
        '"b.png","cannot be decoded as PNG or JPEG","","",""\n'
    )


def test_json_has_an_object_per_file(tmp_path):
    write_rows(tmp_path / "out.JSON", _ROWS, ())
    assert json.loads((tmp_path / "out.JSON").read_text()) == [
        {
            "file": "a/cat.png",
            "status": "classified",
            "class_id": 1,
            "class_name": None,
            "probability": 0.75,
            "probabilities": [0.25, 0.75],
        },
        {
            "file": "b.png",
            "status": "cannot be decoded as PNG or JPEG",
            "class_id": None,
            "class_name": None,
            "probability": None,
            "probabilities": None,
        },
    ]


@pytest.mark.parametrize(
    "name",
    [
        "=cmd|' /C calc'!A0.png",
        "+1.png",
        "-1.png",
        "@SUM(A1).png",
        "\t=1.png",
        "\r=1.png",
        "\n=1.png",
        "\uff1d1.png",
        "'quoted.png",
    ],
)
def test_no_cell_is_a_formula_and_names_can_be_restored(tmp_path, name):
    write_rows(tmp_path / "out.csv", [FileRow(name, "classified", 0, (1.0,))], (name,))
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        _, row = csv.reader(file)
    assert row[0] == row[3] == f"'{name}"


@pytest.mark.parametrize("name", ['x";=1.png', "a,b.png", "a\nb.png", "a\rb.png", 'say "hi".png'])
def test_odd_names_stay_in_their_cell(tmp_path, name):
    write_rows(tmp_path / "out.csv", [FileRow(name, "classified", 0, (1.0,))], ())
    text = (tmp_path / "out.csv").read_bytes().decode()
    quoted = name.replace('"', '""')
    assert text.split("\n", 1)[1] == f'"{quoted}","classified",0,"",1.0\n'


def test_class_names_must_be_as_many_as_classes(tmp_path):
    with pytest.raises(SfmError, match="Found 3 class names for 2 classes"):
        write_rows(tmp_path / "out.csv", _ROWS, ("a", "b", "c"))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_stops_half_way_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "out.csv").write_text("old")

    def fail(descriptor):
        raise OSError("disk")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk"):
        write_rows(tmp_path / "out.csv", _ROWS, ())
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "old"


def test_outputs_are_checked_before_the_work(tmp_path):
    with pytest.raises(SfmError, match=r"expected a name in \.csv or \.json"):
        check_output(tmp_path / "out.txt")
    with pytest.raises(SfmError, match="No folder .*gone' for the output"):
        check_output(tmp_path / "gone" / "out.csv")


def test_reads_class_names(tmp_path):
    path = tmp_path / "class_names.json"
    path.write_text('["cat", "\u00e9t\u00e9"]', encoding="utf-8")
    assert read_class_names(path) == ("cat", "\u00e9t\u00e9")


@pytest.mark.parametrize("text", ["{}", "[1]", "["])
def test_refuses_other_files_of_class_names(tmp_path, text):
    path = tmp_path / "class_names.json"
    path.write_text(text)
    with pytest.raises(SfmError, match="class names"):
        read_class_names(path)
