import json

import pytest

from sfm_tf.artifacts.manifest import Manifest, read_manifest, write_manifest
from sfm_tf.errors import SfmError


def _manifest():
    return Manifest(
        stage="train",
        fingerprint="ab",
        config={"training": {"epochs": 2}},
        seed=3,
        inputs={"ingest": "cd"},
        content="0a",
        code_version="ef",
        package_versions={"tensorflow": "2.21.0"},
        started="2026-01-01T00:00:00+00:00",
        wall_seconds=1.5,
    )


def test_round_trip(tmp_path):
    write_manifest(tmp_path, _manifest())
    assert read_manifest(tmp_path) == _manifest()


def test_speaks_the_vocabulary_of_ml_metadata(tmp_path):
    write_manifest(tmp_path, _manifest())
    value = json.loads((tmp_path / "manifest.json").read_text())
    assert value["artifact"] == {"stage": "train", "fingerprint": "ab", "content": "0a"}
    assert value["execution"]["seed"] == 3
    assert value["events"] == [
        {"type": "INPUT", "stage": "ingest", "fingerprint": "cd"},
        {"type": "OUTPUT", "stage": "train", "fingerprint": "ab"},
    ]


@pytest.mark.parametrize("text", [None, "{", "{}", '{"artifact": 1, "execution": 2, "events": []}'])
def test_refuses_what_is_not_a_manifest(tmp_path, text):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(SfmError, match=r"Cannot read .*manifest\.json.*Run the stage again"):
        read_manifest(tmp_path)
