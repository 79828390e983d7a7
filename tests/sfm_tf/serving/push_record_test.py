import json
import pathlib

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.push_record import check_own, portable_address, read_push, write_push
from sfm_tf.serving.pushing import PushedModel


def pushed(workdir, serving_dir):
    """A working directory with the record of a push; returns where the record is."""
    artifact = workdir / "export" / "ab12"
    artifact.mkdir(parents=True)
    recorded = portable_address(serving_dir, workdir)
    write_push(artifact, PushedModel("unused", 7, 21, {}), recorded, "digits", workdir)
    return artifact


@pytest.mark.parametrize(
    ("serving_dir", "recorded"),
    [
        ("", "serving"),
        ("runs/a/models", "models"),
        ("runs/a/../b/models", "{here}/runs/b/models"),
        ("runs/a", "."),
        ("/srv/models", "/srv/models"),
        ("~/models", "{here}/home/models"),
        ("runs/link/models", "models"),
        ("gs://bucket/models/", "gs://bucket/models"),
    ],
    ids=["default", "inside", "beside", "itself", "outside", "home", "link", "address"],
)
def test_a_folder_is_recorded_as_a_path_in_the_working_directory_or_in_full(
    tmp_path, monkeypatch, serving_dir, recorded
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    pathlib.Path("runs/a").mkdir(parents=True)
    pathlib.Path("runs/link").symlink_to("a")
    expected = recorded.format(here=tmp_path)
    assert portable_address(serving_dir, pathlib.Path("runs/a")) == expected


def test_what_is_inside_belongs_to_every_copy_and_what_is_outside_to_who_pushed_it(tmp_path):
    original, copy = tmp_path / "original", tmp_path / "copy"
    for place, owned in (("serving", True), (str(tmp_path / "models"), False), ("gs://b", False)):
        artifact = pushed(original / place.strip("/"), "" if owned else place)
        root = artifact.parents[1]
        check_own(read_push(artifact, root), root)
        record = read_push(artifact, copy)
        if owned:
            assert record.versions == f"{copy}/serving/digits"
            check_own(record, copy)
        else:
            assert record.versions == f"{place}/digits"
            message = f"{place}/digits were pushed by {root}, and .*/copy may be a copy of it"
            with pytest.raises(SfmError, match=message):
                check_own(record, copy)


def test_a_link_out_of_the_working_directory_is_not_inside(tmp_path):
    workdir = tmp_path / "run"
    artifact = pushed(workdir, "")
    (tmp_path / "large").mkdir()
    (workdir / "serving").symlink_to(tmp_path / "large")
    with pytest.raises(SfmError, match="--serving_dir=.*serving --model_name=digits in place of"):
        check_own(read_push(artifact, workdir), workdir)


@pytest.mark.parametrize(
    ("folder", "versions", "own"),
    [
        ("runs/original/serving/digits/7", "{root}/serving/digits", True),
        ("/gone/original/serving/digits/7", "{root}/serving/digits", True),
        ("models/digits/7", "{here}/models/digits", False),
        ("/srv/models/digits/7", "/srv/models/digits", False),
        ("gs://bucket/models/digits/7", "gs://bucket/models/digits", False),
    ],
    ids=["relative", "full", "relative outside", "full outside", "address"],
)
def test_records_of_earlier_releases_are_read(tmp_path, monkeypatch, folder, versions, own):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "copy"
    (root / "serving" / "digits").mkdir(parents=True)
    (root / "pushed.json").write_text(json.dumps({"folder": folder, "verification": {"a": 1}}))
    record = read_push(root, root)
    assert (record.versions, record.version) == (versions.format(root=root, here=tmp_path), 7)
    assert record.folder == f"{record.versions}/7"
    assert record.verification == {"a": 1}
    assert (record.pushed_by is None) == own
    if not own:
        with pytest.raises(SfmError, match="a working directory that its record does not name"):
            check_own(record, root)


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        {"folder": "7"},
        {"serving_dir": "../original/serving", "model_name": "digits", "version": 7},
        {"serving_dir": "serving", "model_name": "../digits", "version": 7},
        {"serving_dir": "serving", "model_name": "digits", "version": "new"},
    ],
    ids=["empty", "list", "no model", "out of the directory", "no name", "no number"],
)
def test_a_damaged_record_is_named(tmp_path, values):
    (tmp_path / "pushed.json").write_text(json.dumps(values))
    with pytest.raises(SfmError, match="pushed.json|Invalid model_name"):
        read_push(tmp_path, tmp_path)
