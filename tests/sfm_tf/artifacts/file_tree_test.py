import os

import pytest

from sfm_tf.artifacts.file_tree import walk
from sfm_tf.errors import SfmError


def _write(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _names(folder, paths):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_links_to_files_and_folders_are_followed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    _write(root / "b" / "c")
    _write(root / "a")
    _write(outside / "deep" / "d")
    (root / "file").symlink_to(root / "a")
    (root / "folder").symlink_to(outside)
    (root / "nowhere").symlink_to(tmp_path / "absent")
    expected = ["a", "b/c", "file", "folder/deep/d", "nowhere"]
    assert _names(root, walk(root).files) == expected


def test_two_links_to_one_folder_are_no_loop(tmp_path):
    _write(tmp_path / "outside" / "a")
    for name in ("first", "second"):
        (tmp_path / "root" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "root" / name).symlink_to(tmp_path / "outside")
    assert _names(tmp_path / "root", walk(tmp_path / "root").files) == ["first/a", "second/a"]


@pytest.mark.parametrize("target", [".", "cat", "cat/deep"])
def test_link_that_leads_back_is_named(tmp_path, target):
    _write(tmp_path / "cat" / "deep" / "a")
    (tmp_path / "cat" / "deep" / "loop").symlink_to(tmp_path / target)
    with pytest.raises(SfmError, match=r"/loop leads back to a folder that it is in; remove"):
        walk(tmp_path)


def test_what_is_passed_over_is_not_looked_into(tmp_path):
    _write(tmp_path / "a")
    _write(tmp_path / "x" / "x")
    _write(tmp_path / "only" / "x")
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    tree = walk(tmp_path, lambda name: name == "x")
    assert _names(tmp_path, tree.files) == ["a"]
    assert _names(tmp_path, tree.empty_folders) == ["only"]
    assert _names(tmp_path, tree.passed_over) == ["only/x", "x"]


def test_names_that_are_no_text_are_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    _write(tmp_path / name)
    assert _names(tmp_path, walk(tmp_path).files) == [name]
