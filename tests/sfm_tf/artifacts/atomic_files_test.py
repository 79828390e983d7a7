import json
import os

import pytest

from sfm_tf.artifacts import atomic_files
from sfm_tf.errors import SfmError


def test_replaces_the_whole_file(tmp_path):
    path = tmp_path / "value.json"
    path.write_text("something much longer than what follows")
    atomic_files.write_json(path, {"b": 1, "a": [0.5]})
    assert json.loads(path.read_text()) == {"a": [0.5], "b": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_a_failed_write_keeps_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "value.txt"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["value.txt"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_files.write_json(tmp_path / "value.json", {"accuracy": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", [None, "{", "\xff"])
def test_a_damaged_file_says_what_to_do(tmp_path, text):
    if text is not None:
        (tmp_path / "value.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SfmError, match=r"Cannot read .*value\.json.*run its stage again"):
        atomic_files.read_json(tmp_path / "value.json")


def test_sync_folder_accepts_a_folder_and_refuses_a_missing_one(tmp_path):
    atomic_files.sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        atomic_files.sync_folder(tmp_path / "absent")
