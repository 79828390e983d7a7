import fcntl
import multiprocessing
import os

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.local_model_folder import LocalModelFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "1" / "variables").mkdir(parents=True)
    (tmp_path / "model" / "1" / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "model" / "1" / "variables" / "index").write_bytes(b"12")
    return LocalModelFolder(tmp_path / "model", patience_seconds=0.1)


def test_reads_names_sizes_and_contents(folder):
    assert folder.names() == ["1"]
    assert sorted(folder.names("1")) == ["saved_model.pb", "variables"]
    assert folder.names("absent") == []
    assert folder.names("1/saved_model.pb") == []
    assert folder.files("1") == {"saved_model.pb": 5, "variables/index": 2}
    assert folder.read("1/variables/index") == b"12"
    assert folder.read("1/absent") is None


def test_a_file_is_created_once(folder):
    assert folder.create(".pushes/1.json", b"first")
    assert not folder.create(".pushes/1.json", b"second")
    assert folder.read(".pushes/1.json") == b"first"


def test_copies_stay_hidden_until_revealed_and_deleted_versions_leave_nothing(folder):
    with folder.exclusive():
        incoming = folder.duplicate("1")
        assert incoming.startswith(".incoming-")
        assert sorted(folder.names()) == sorted([".lock", "1", incoming])
        folder.reveal(incoming, "2")
        folder.delete(incoming)
        assert folder.files("2") == folder.files("1")
        folder.delete("1")
    assert sorted(folder.names()) == [".lock", "2"]


def test_a_version_is_out_of_sight_before_its_first_file_is_deleted(folder, monkeypatch):
    seen = []

    def stop(path):
        seen.append((folder.names("1"), folder.names()))
        raise OSError("Killed")

    monkeypatch.setattr("shutil.rmtree", stop)
    with pytest.raises(OSError, match="Killed"):
        folder.delete("1")
    ((inside, (outgoing,)),) = seen
    assert inside == []
    assert outgoing.startswith(".outgoing-")


def test_a_copy_of_a_copy_gets_the_mode_of_its_source(folder):
    os.chmod(folder.root / "1", 0o755)
    with folder.exclusive():
        incoming = folder.duplicate("1")
        folder.reveal(incoming, "2")
    # A server often runs as another user than the one who pushed.
    assert (folder.root / "2").stat().st_mode & 0o777 == 0o755


def test_leftovers_are_cleared_only_by_whoever_holds_the_lock(folder):
    (folder.root / ".incoming-dead").mkdir()
    (folder.root / ".outgoing-dead").mkdir()
    with open(folder.root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SfmError, match="Another process has been changing .* for over 0.1 sec"):
            folder.exclusive().__enter__()
        assert ".incoming-dead" in folder.names()
    with folder.exclusive():
        assert sorted(folder.names()) == [".lock", "1"]


def _hold_and_die(root):
    LocalModelFolder(root).exclusive().__enter__()
    os._exit(9)


def test_the_lock_ends_with_the_process_that_held_it(folder):
    process = multiprocessing.get_context("spawn").Process(
        target=_hold_and_die, args=(folder.root,)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    with folder.exclusive():
        pass


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
