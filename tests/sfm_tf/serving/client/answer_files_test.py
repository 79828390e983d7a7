import csv
import json

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.answer_files import check_output, read_class_names, write_rows
from sfm_tf.serving.client.folder_classification import FileRow

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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
