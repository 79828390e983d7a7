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


def test_is_written_as_json_and_read_back(tmp_path):
    schema = Schema(2, 3, 1, ("cat", "déjà vu"), {"train": 5, "test": 1})
    assert schema.image_shape == (2, 3, 1)
    assert json.loads(schema.to_json()) == _FIELDS
    write_schema(schema, tmp_path)
    assert read_schema(tmp_path) == schema


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


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"3", b"\xff\xfe"])
def test_missing_or_damaged_file_is_named(tmp_path, data):
    with pytest.raises(SfmError, match=f"No schema.json in {tmp_path}"):
        read_schema(tmp_path)
    (tmp_path / "schema.json").write_bytes(data)
    with pytest.raises(SfmError, match="Cannot read .*schema.json"):
        read_schema(tmp_path)
