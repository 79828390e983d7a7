"""A push must be all or nothing for a server that polls the folder."""

import pathlib
import shutil

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving import versions


@pytest.fixture
def staged(tmp_path):
    folder = tmp_path / "staged"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def entries(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([], 1),
        (["1"], 2),
        (["9", "10"], 11),
        (["2", "7", "3"], 8),
        (["1", ".incoming-99", "notes", "12.old", "-5"], 2),
    ],
)
def test_next_version_follows_the_largest_number(tmp_path, present, expected):
    for name in present:
        (tmp_path / name).mkdir()
    assert versions.next_version(tmp_path) == expected


def test_next_version_of_an_absent_folder_is_one(tmp_path):
    assert versions.next_version(tmp_path / "absent") == 1


def test_pushed_versions_are_whole_copies_that_count_up(staged, tmp_path):
    serving = tmp_path / "new" / "serving"
    pushed = [versions.push(staged, serving, "model") for _ in range(3)]
    assert [path.relative_to(serving).as_posix() for path in pushed] == [
        "model/1",
        "model/2",
        "model/3",
    ]
    assert entries(serving / "model") == ["1", "2", "3"]
    for path in pushed:
        assert contents(path) == {
            "saved_model.pb": b"graph",
            "variables/variables.index": b"index",
        }


def test_a_version_removed_from_the_middle_is_not_reused(staged, tmp_path):
    first, second = (versions.push(staged, tmp_path / "serving", "model") for _ in range(2))
    shutil.rmtree(first)
    assert versions.push(staged, tmp_path / "serving", "model").name == "3"
    assert second.exists()


def test_stopped_before_the_rename_leaves_the_earlier_version_as_it_was(
    staged, tmp_path, monkeypatch
):
    earlier = versions.push(staged, tmp_path / "serving", "model")
    before = contents(earlier)
    (staged / "saved_model.pb").write_bytes(b"another graph")
    seen = []

    def stop(source, target):
        seen.append(entries(pathlib.Path(target).parent))
        raise KeyboardInterrupt

    monkeypatch.setattr(versions.os, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        versions.push(staged, tmp_path / "serving", "model")
    assert contents(earlier) == before
    assert entries(earlier.parent) == ["1"]
    # While the copy lay there, nothing but version 1 looked like a version.
    assert [name for name in seen[0] if name.isdecimal()] == ["1"]
    assert len(seen[0]) == 2


def test_a_version_taken_meanwhile_is_not_replaced(staged, tmp_path, monkeypatch):
    earlier = versions.push(staged, tmp_path / "serving", "model")
    before = contents(earlier)
    monkeypatch.setattr(versions, "next_version", lambda folder: 1)
    with pytest.raises(SfmError, match="Cannot push to .*model: "):
        versions.push(staged, tmp_path / "serving", "model")
    assert contents(earlier) == before
    assert entries(earlier.parent) == ["1"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "/root", "a\nb", "a b", ".hidden"])
def test_names_that_are_no_folder_name_are_refused(staged, tmp_path, name):
    with pytest.raises(SfmError, match="Invalid model_name"):
        versions.push(staged, tmp_path / "serving", name)
    assert not (tmp_path / "serving").exists()


def test_a_serving_folder_that_is_a_file_is_named_in_the_error(staged, tmp_path):
    (tmp_path / "serving").write_text("a file")
    with pytest.raises(SfmError, match=r"Cannot push to .*serving.*; check that the folder"):
        versions.push(staged, tmp_path / "serving", "model")


def test_a_full_disk_leaves_no_half_copy(staged, tmp_path, monkeypatch):
    def fail(source, target):
        pathlib.Path(target).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(versions.shutil, "copytree", fail)
    with pytest.raises(SfmError, match="No space left on device"):
        versions.push(staged, tmp_path / "serving", "model")
    assert entries(tmp_path / "serving" / "model") == []


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
