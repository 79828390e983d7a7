import os

import pytest

from sfm_tf.config import DataConfig
from sfm_tf.datasets.source_version import source_version


@pytest.fixture(name="folder")
def _folder(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"image")
    return tmp_path


def _version(path):
    return source_version(DataConfig(dataset="image_folder", source=str(path)))


def _add(folder):
    (folder / "cat" / "b.png").write_bytes(b"image")


def _rename(folder):
    (folder / "cat" / "a.png").rename(folder / "cat" / "c.png")


def _grow(folder):
    (folder / "cat" / "a.png").write_bytes(b"image!")


def _touch(folder):
    os.utime(folder / "cat" / "a.png", ns=(1, 1))


@pytest.mark.parametrize("change", [_add, _rename, _grow, _touch])
def test_changes_with_the_files(folder, change):
    before = _version(folder)
    assert _version(folder) == before
    change(folder)
    assert _version(folder) != before


def test_an_archive_counts_as_one_file(folder):
    archive = folder / "cat" / "a.png"
    before = _version(archive)
    archive.write_bytes(b"longer image")
    assert _version(archive) != before


def test_nothing_to_read_has_no_version(tmp_path):
    assert source_version(DataConfig()) == ""
    assert _version(tmp_path / "absent") == ""


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
