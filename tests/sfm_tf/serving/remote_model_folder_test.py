import itertools
import subprocess
import sys
import time

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.remote_model_folder import RemoteModelFolder, open_remote

fsspec = pytest.importorskip("fsspec")
_ROOTS = (f"memory://remote-{number}/models/model" for number in itertools.count())


@pytest.fixture
def folder():
    return open_remote(next(_ROOTS))


@pytest.fixture
def staged(tmp_path):
    (tmp_path / "staged" / "variables").mkdir(parents=True)
    (tmp_path / "staged" / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "staged" / "variables" / "index").write_bytes(b"12")
    (tmp_path / "staged" / "zebra").write_bytes(b"")
    return tmp_path / "staged"


def test_reads_names_sizes_and_contents(folder, staged):
    assert folder.names() == []
    folder.reveal(folder.upload(staged), "1")
    assert "1" in folder.names()
    assert sorted(folder.names("1")) == ["saved_model.pb", "variables", "zebra"]
    assert folder.files("1") == {"saved_model.pb": 5, "variables/index": 2, "zebra": 0}
    assert folder.files("absent") == {}
    assert folder.read("1/variables/index") == b"12"
    assert folder.read("1/absent") is None


def test_an_object_is_created_once(folder):
    assert folder.create(".pushes/1.json", b"first")
    assert not folder.create(".pushes/1.json", b"second")
    assert folder.read(".pushes/1.json") == b"first"


def test_of_two_processes_that_found_nothing_the_store_chooses_one(folder, monkeypatch):
    modes = []

    def refuse(self, path, value, mode="overwrite", **options):
        # As gcsfs and s3fs answer if the object came into being since it was looked for.
        modes.append(mode)
        raise FileExistsError(path)

    monkeypatch.setattr(type(folder.filesystem), "pipe_file", refuse)
    assert not folder.create(".pushes/1.json", b"second")
    assert modes == ["create"]


@pytest.fixture
def recorded(folder, monkeypatch):
    """The changes made to the store, in order."""
    changes = []
    for name in ("cp_file", "rm_file", "_rm"):
        original = getattr(type(folder.filesystem), name)

        def spy(self, *paths, _original=original, _name=name, **options):
            changes.append((_name, *[path.removeprefix(folder.root) for path in paths]))
            return _original(self, *paths, **options)

        monkeypatch.setattr(type(folder.filesystem), name, spy)
    return changes


def test_the_graph_is_copied_last_and_deleted_first(folder, staged, recorded):
    incoming = folder.upload(staged)
    assert recorded == []
    folder.reveal(incoming, "1")
    assert [target for _, _, target in recorded] == [
        "/1/variables/index",
        "/1/zebra",
        "/1/saved_model.pb",
    ]
    recorded.clear()
    folder.delete("1")
    assert recorded[0][1] == "/1/saved_model.pb"
    assert folder.files("1") == {}
    assert "1" not in folder.names()


def test_only_uploads_that_are_older_than_a_day_are_cleared(folder):
    old, new = int(time.time()) - 90_000, int(time.time()) - 80_000
    for name in (f".incoming-{old}-aa", f".incoming-{new}-bb", ".incoming-x", "7"):
        folder.filesystem.pipe_file(f"{folder.root}/{name}/saved_model.pb", b"")
    with folder.exclusive():
        assert sorted(folder.names()) == sorted([f".incoming-{new}-bb", ".incoming-x", "7"])


def test_a_failed_upload_leaves_nothing(folder, staged, monkeypatch):
    def fail(self, source, target, **options):
        self.pipe_file(target, b"half")
        raise OSError("The connection was lost")

    monkeypatch.setattr(type(folder.filesystem), "put_file", fail)
    with pytest.raises(OSError, match="connection"):
        folder.upload(staged)
    assert folder.names() == []


@pytest.mark.parametrize("address", ["gopher://bucket/model", "nothing-such+x://bucket/model"])
def test_addresses_that_no_package_serves_are_refused(address):
    with pytest.raises(SfmError, match="Cannot reach .*: Protocol not known.*; install fsspec and"):
        open_remote(address)


def test_without_fsspec_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SfmError, match="Cannot reach gs://bucket/m: .*install fsspec and its pack"):
        open_remote("gs://bucket/m")


def test_works_on_a_file_system_with_real_folders(tmp_path, staged):
    folder = RemoteModelFolder(fsspec.filesystem("file", auto_mkdir=True), str(tmp_path / "model"))
    assert folder.create(".pushes/1.json", b"first")
    assert not folder.create(".pushes/1.json", b"second")
    incoming = folder.upload(staged)
    folder.reveal(incoming, "1")
    folder.delete(incoming)
    diff = subprocess.run(["diff", "-r", staged, tmp_path / "model" / "1"], check=False)
    assert diff.returncode == 0
    folder.delete("1")
    assert folder.names() == [".pushes"]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
