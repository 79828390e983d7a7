import json

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.records.schema import Schema, read_schema, write_schema

_FIELDS = {
    "height": 2,
    "width": 3,
    "channels": 1,
    "class_names": ["cat", "déjà vu"],
    "split_sizes": {"train": 5, "test": 1},
}


def test_json_holds_every_field():
    schema = Schema(2, 3, 1, ("cat", "déjà vu"), {"train": 5, "test": 1})
    assert json.loads(schema.to_json()) == _FIELDS


def test_reads_what_it_wrote(tmp_path):
    schema = Schema(2, 3, 1, ("cat", "déjà vu"), {"train": 5, "test": 1})
    write_schema(schema, tmp_path)
    assert read_schema(tmp_path) == schema


def test_image_shape():
    assert Schema.from_json(json.dumps(_FIELDS)).image_shape == (2, 3, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "Invalid image shape 0x3x1"),
        ({"channels": 2}, "Invalid image shape 2x3x2; expected HxWx1 or HxWx3"),
        ({"class_names": ["cat", "cat"]}, "expected distinct names"),
        ({"class_names": []}, "expected distinct names"),
        ({"split_sizes": {"train": 0}}, "expected at least 1 each"),
        ({"split_sizes": {}}, "Invalid split sizes"),
        ({"height": "2"}, "Not a schema of records"),
        ({"height": True}, "Not a schema of records"),
        ({"class_names": [1, 2]}, "Not a schema of records"),
        ({"split_sizes": 3}, "Not a schema of records"),
    ],
)
def test_bad_fields(change, message):
    with pytest.raises(SfmError, match=message):
        Schema.from_json(json.dumps({**_FIELDS, **change}))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3"])
def test_not_a_schema(text):
    with pytest.raises(SfmError, match="Not a schema of records"):
        Schema.from_json(text)


def test_missing_file_names_folder(tmp_path):
    with pytest.raises(SfmError, match=f"No schema.json in {tmp_path}"):
        read_schema(tmp_path)


@pytest.mark.parametrize("data", [b"{}", b"\xff\xfe"])
def test_damaged_file_is_named(tmp_path, data):
    (tmp_path / "schema.json").write_bytes(data)
    with pytest.raises(SfmError, match="Cannot read .*schema.json"):
        read_schema(tmp_path)
