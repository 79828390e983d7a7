import os
import tracemalloc
import zipfile

import pytest

from sfm_tf.datasets import archives
from sfm_tf.datasets.archives import fingerprint, open_archive
from sfm_tf.errors import SfmError

_FILES = {"top/a.txt": b"alpha", "top/sub/b.bin": bytes(range(256)) * 10}


def _zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def _folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("make", [_zip, _folder])
def test_reads_every_file(tmp_path, make):
    with open_archive(make(tmp_path / "archive", _FILES)) as archive:
        assert set(archive.versions) == set(_FILES)
        assert {name: archive.read(name) for name in archive.versions} == _FILES


@pytest.mark.parametrize("make", [_zip, _folder])
def test_missing_member_is_named(tmp_path, make):
    path = make(tmp_path / "archive", _FILES)
    with (
        open_archive(path) as archive,
        pytest.raises(SfmError, match=rf"{path} lacks top/c\.txt"),
    ):
        archive.read("top/c.txt")


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with pytest.raises(SfmError, match=f"No file or folder {path}"):
        open_archive(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(SfmError, match=f"Cannot open {path}: .*; expected a folder or a"):
        open_archive(path)
    with pytest.raises(SfmError, match="Member 'a' of .* expected stored or deflated"):
        open_archive(_zip(path, {"a": b"alpha"}, zipfile.ZIP_LZMA))


def test_name_that_is_no_text_is_refused(tmp_path):
    """The archive says that its names are UTF-8, and one is not."""
    path = _zip(tmp_path / "a.zip", {"é": b""})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xe9\xe9"))
    with pytest.raises(SfmError, match="Cannot open .*decode.*; expected a folder or a zip arch"):
        open_archive(path)


def test_long_name_is_refused(tmp_path):
    with pytest.raises(SfmError, match="expected names of at most 255 bytes"):
        open_archive(_zip(tmp_path / "a.zip", {f"{'é' * 128}.png": b""}))


@pytest.mark.parametrize("make", [_zip, _folder])
def test_empty_folders_and_what_is_passed_over_are_told(tmp_path, make):
    passed_over = {"a/.b/c": b"", "a/.b/d": b"", "a/THUMBS.DB": b"", "__MACOSX/a/b": b""}
    path = make(tmp_path / "archive", {"a/b": b"", **passed_over})
    if path.is_dir():
        (path / "empty" / "inner").mkdir(parents=True)
    else:
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("empty/", b"")
            file.writestr("empty/inner/", b"")
    with open_archive(path) as archive:
        assert (list(archive.versions), archive.empty_folders) == (["a/b"], ("empty/inner/",))
        assert archive.passed_over == 3


@pytest.mark.parametrize("name", ["../escape", "a/../../escape", "/etc/passwd", "a\\..\\b"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    path = _zip(tmp_path / "a.zip", {"fine": b"", name: b""})
    with pytest.raises(SfmError, match="expected relative names"):
        open_archive(path)
    assert [child.name for child in tmp_path.iterdir()] == ["a.zip"]


def test_two_members_of_one_name(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a", b"2")
    with pytest.raises(SfmError, match="has two members 'a'"):
        open_archive(path)


@pytest.mark.parametrize("make", [_zip, _folder])
def test_large_member_is_refused(tmp_path, make, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_MEMBER_BYTES", 100)

    def read(name, size):
        with open_archive(make(tmp_path / name, {name: bytes(size)})) as archive:
            return archive.read(name)

    assert read("small", 100) == bytes(100)
    with pytest.raises(SfmError, match="101 bytes; expected at most 100"):
        read("large", 101)


def test_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    _zip(tmp_path / "two.zip", {"a": b"", "b": b""})
    with open_archive(tmp_path / "two.zip"):
        pass
    _zip(tmp_path / "three.zip", {"a": b"", "b": b"", "c": b""})
    with pytest.raises(SfmError, match="has 3 members; expected at most 2"):
        open_archive(tmp_path / "three.zip")


def test_damaged_member_is_named(tmp_path):
    path = _zip(tmp_path / "a.zip", {"a": b"alpha"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"alpha", b"alphA"))
    with open_archive(path) as archive, pytest.raises(SfmError, match="Cannot read a of .*CRC"):
        archive.read("a")


def test_member_that_lies_about_its_size_takes_no_more_memory_than_it_claims(tmp_path):
    """The directory promises 10 bytes; the compressed data would grow to 20 million."""
    size = 20_000_000
    path = _zip(tmp_path / "a.zip", {"a": bytes(size)})
    claim = size.to_bytes(4, "little")
    assert path.read_bytes().count(claim) == 2
    path.write_bytes(path.read_bytes().replace(claim, (10).to_bytes(4, "little")))
    with open_archive(path) as archive:
        tracemalloc.start()
        with pytest.raises(SfmError, match="Cannot read a of"):
            archive.read("a")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 5_000_000


def test_fingerprint_follows_the_contents(tmp_path):
    def digest(path):
        with open_archive(path) as archive:
            return fingerprint(archive)

    first = digest(_zip(tmp_path / "1.zip", _FILES))
    assert len(first) == 16
    assert digest(_zip(tmp_path / "2.zip", dict(reversed(_FILES.items())))) == first
    assert digest(_zip(tmp_path / "3.zip", {**_FILES, "top/a.txt": b"alphA"})) != first
    assert digest(_zip(tmp_path / "4.zip", {**_FILES, "c": b""})) != first

    folder = _folder(tmp_path / "folder", _FILES)
    before = digest(folder)
    assert digest(folder) == before
    os.utime(folder / "top/a.txt", ns=(1, 1))
    assert digest(folder) != before
