"""A push must be all or nothing for a server that polls the folder, whatever stops it."""

import contextlib
import errno
import fcntl
import itertools
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving import versions
from sfm_tf.serving.versions import ServedVersion, open_folder

PARTS = ("variables/variables.index", "variables/variables.data", "assets.extra/names.json")
FILES = (*PARTS, "saved_model.pb")
_MEMORY_ROOTS = (f"memory://bucket-{number}/models/model" for number in itertools.count())


def stage(folder: pathlib.Path, content: bytes = b"graph") -> pathlib.Path:
    for part in FILES:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_bytes(content)
    return folder


@pytest.fixture
def staged(tmp_path):
    return stage(tmp_path / "staged")


@pytest.fixture(params=["local", "memory"])
def address(request, tmp_path):
    """The folder of a model on this machine, and one in an object store."""
    if request.param == "local":
        return str(tmp_path / "serving" / "model")
    return next(_MEMORY_ROOTS)


@pytest.fixture
def folder(address):
    return open_folder(address)


@pytest.fixture
def store():
    """The folder of a model in an object store."""
    return open_folder(next(_MEMORY_ROOTS))


def test_of_two_processes_that_found_nothing_the_store_chooses_one(store, monkeypatch):
    modes = []

    def refuse(self, path, value, mode="overwrite", **options):
        # As gcsfs and s3fs answer if the object came into being since it was looked for.
        modes.append(mode)
        raise FileExistsError(path)

    monkeypatch.setattr(type(store.filesystem), "pipe_file", refuse)
    assert not store.create(".pushes/1.json", b"second")
    assert modes == ["create"]


def test_a_version_is_out_of_sight_before_its_first_file_is_deleted(staged, tmp_path, monkeypatch):
    folder = open_folder(tmp_path / "model")
    folder.reveal(folder.copy(staged), "1")
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


def test_in_an_object_store_the_graph_is_copied_last_and_deleted_first(store, staged, monkeypatch):
    changes = []
    for name in ("cp_file", "rm_file", "_rm"):
        original = getattr(type(store.filesystem), name)

        def spy(self, *paths, _original=original, _name=name, **options):
            changes.append((_name, *[path.removeprefix(store.root) for path in paths]))
            return _original(self, *paths, **options)

        monkeypatch.setattr(type(store.filesystem), name, spy)
    incoming = store.copy(staged)
    assert changes == []
    store.reveal(incoming, "1")
    copied = [paths[1] for name, *paths in changes if name == "cp_file"]
    assert copied == [f"/1/{part}" for part in (*sorted(PARTS), "saved_model.pb")]
    changes.clear()
    store.delete("1")
    assert changes[0] == ("rm_file", "/1/saved_model.pb")
    assert store.names() == []


def test_other_users_can_read_what_was_pushed(staged, tmp_path):
    # A server often runs as another user than the one who pushed.
    os.chmod(staged, 0o700)
    before = os.umask(0o022)
    try:
        number = versions.publish(staged, tmp_path / "model")
    finally:
        os.umask(before)
    assert (tmp_path / "model" / str(number)).stat().st_mode & 0o777 == 0o755


def test_leftovers_are_cleared_only_by_whoever_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "PATIENCE_SECONDS", 0.1)
    folder = open_folder(tmp_path)
    (tmp_path / ".incoming-dead").mkdir()
    (tmp_path / ".outgoing-dead").mkdir()
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SfmError, match="Another process has been changing .* for over 0.1 sec"):
            folder.exclusive().__enter__()
        assert ".incoming-dead" in folder.names()
    with folder.exclusive():
        assert folder.names() == [".lock"]


def test_only_uploads_that_are_older_than_a_day_are_cleared(store):
    old, new = int(time.time()) - 90_000, int(time.time()) - 80_000
    for name in (f".incoming-{old}-aa", f".incoming-{new}-bb", ".incoming-x", "7"):
        store.filesystem.pipe_file(f"{store.root}/{name}/saved_model.pb", b"")
    with store.exclusive():
        assert sorted(store.names()) == sorted([f".incoming-{new}-bb", ".incoming-x", "7"])


def _hold_and_die(root):
    open_folder(root).exclusive().__enter__()
    os._exit(9)


def test_the_lock_ends_with_the_process_that_held_it(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    with open_folder(tmp_path).exclusive():
        pass


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_push_that_fails_leaves_nothing(address, staged, monkeypatch, has_begun):
    def fail(self, source, target, **options):
        if has_begun:
            self.pipe_file(target, b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(open_folder(address).filesystem), "put_file", fail)
    with pytest.raises(SfmError, match="Cannot push to .*model: No space left on device; check"):
        versions.publish(staged, address)
    assert set(open_folder(address).names()) <= {".lock"}


@pytest.mark.parametrize("address", ["gopher://bucket/model", "nothing-such+x://bucket/model"])
def test_addresses_that_no_package_serves_are_refused(address):
    with pytest.raises(SfmError, match="Cannot reach .*: Protocol not known.*; install fsspec's"):
        open_folder(address)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def push(staged: pathlib.Path, serving: pathlib.Path, name: str) -> pathlib.Path:
    address = versions.model_folder(serving, name)
    return pathlib.Path(address, str(versions.publish(staged, address)))


def seen_by_a_server(folder: pathlib.Path) -> list[str]:
    """Names that TensorFlow Serving takes for versions: those that it can parse as integers."""
    return sorted(name for name in os.listdir(folder) if name.isdecimal())


def numbers(address: str) -> list[int]:
    return [version.number for version in versions.list_versions(address)]


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
def test_a_push_gets_the_number_after_the_largest(tmp_path, staged, present, expected):
    for name in present:
        (tmp_path / "model" / name).mkdir(parents=True)
    assert versions.publish(staged, tmp_path / "model") == expected


def test_an_absent_folder_has_no_versions(address):
    assert versions.served_version(address) is None
    assert versions.list_versions(address) == []


def test_pushed_versions_are_whole_copies_that_count_up(staged, address, folder):
    assert [versions.publish(staged, address) for _ in range(3)] == [1, 2, 3]
    names = [name for name in folder.names() if name not in (".lock", ".pushes")]
    assert sorted(names) == ["1", "2", "3"]
    for name in names:
        found = {part: folder.read(f"{name}/{part}") for part in folder.files(name)}
        assert found == dict.fromkeys(FILES, b"graph")


def test_a_number_is_never_given_again(staged, address):
    for _ in range(3):
        versions.publish(staged, address)
    open_folder(address).delete("3")
    assert versions.publish(staged, address) == 4
    assert versions.keep_newest(address, 1) == [1, 2]
    open_folder(address).delete("4")
    assert numbers(address) == []
    assert versions.publish(staged, address) == 5


def test_keeps_the_newest(staged, address):
    for _ in range(5):
        versions.publish(staged, address)
    assert versions.keep_newest(address, 7) == []
    assert versions.keep_newest(address, 2) == [1, 2, 3]
    assert numbers(address) == [4, 5]
    assert all(version.complete for version in versions.list_versions(address))


def test_keeping_counts_only_what_a_server_can_load(staged, tmp_path):
    address = tmp_path / "model"
    for _ in range(4):
        versions.publish(staged, address)
    (address / "2" / "saved_model.pb").unlink()
    (address / "9").mkdir()
    assert versions.keep_newest(address, 2) == [1, 2]
    assert seen_by_a_server(address) == ["3", "4", "9"]


def test_rolling_back_makes_a_copy_the_highest_version(tmp_path, address):
    for number in (1, 2, 3):
        versions.publish(stage(tmp_path / f"staged{number}", b"model %d" % number), address)
    assert versions.rollback(address, 1) == 4
    assert versions.served_version(address) == ServedVersion(4, original=1)
    target = open_folder(address)
    for part in FILES:
        assert target.read(f"4/{part}") == b"model 1"
        assert target.read(f"1/{part}") == b"model 1"
    copies = [version.copy_of for version in versions.list_versions(address)]
    assert copies == [None, None, None, 1]
    # Asked again, there is nothing left to do.
    assert versions.rollback(address, 1) == 4
    assert versions.rollback(address, 4) == 4
    assert versions.rollback(address, 3) == 5
    # A copy of a copy is the same model still, whatever of it was deleted.
    assert versions.rollback(address, 4) == 6
    assert versions.keep_newest(address, 1) == [1, 2, 3, 4, 5]
    assert versions.served_version(address) == ServedVersion(6, original=1)


def test_models_are_the_folders_with_versions(staged, tmp_path):
    for name in ("digits", "cifar-10"):
        push(staged, tmp_path, name)
    for address in ("empty", ".hidden/1", "a name/1"):
        (tmp_path / address).mkdir(parents=True)
    (tmp_path / "models.config").write_text("")
    assert versions.find_models(tmp_path) == ["cifar-10", "digits"]
    assert versions.find_models(tmp_path / "absent") == []


def test_lists_what_each_version_tells_of_itself(tmp_path, staged):
    address = tmp_path / "model"
    versions.publish(staged, address)
    (staged / "assets.extra" / "manifest.json").write_text('{"blessed": false}')
    (staged / "assets.extra" / "MODEL_CARD.md").write_text("# Card")
    versions.publish(staged, address)
    (address / "7").mkdir()
    first, second, third = versions.list_versions(address)
    assert (first.number, first.size_bytes, first.complete) == (1, 4 * len("graph"), True)
    assert (first.blessed, first.has_model_card) == (None, False)
    assert (second.blessed, second.has_model_card) == (False, True)
    assert second.size_bytes == 4 * len("graph") + len('{"blessed": false}') + len("# Card")
    assert first.pushed_at == time.strftime("%Y-%m-%dT", time.gmtime()) + first.pushed_at[11:]
    assert (third.complete, third.pushed_at) == (False, None)


def test_a_damaged_record_tells_nothing_and_stops_nothing(staged, tmp_path):
    address = tmp_path / "model"
    versions.publish(staged, address)
    (address / ".pushes" / "1.json").write_text('{"pushed_')
    assert versions.list_versions(address)[0].pushed_at is None
    assert versions.publish(staged, address) == 2


def test_stopped_before_the_rename_leaves_the_earlier_version_as_it_was(
    staged, tmp_path, monkeypatch
):
    earlier = push(staged, tmp_path / "serving", "model")
    before = contents(earlier)
    seen = []

    def stop(self, incoming, version):
        seen.append(seen_by_a_server(earlier.parent))
        assert contents(earlier.parent / incoming) != {}
        raise KeyboardInterrupt

    monkeypatch.setattr(versions.ModelFolder, "reveal", stop)
    with pytest.raises(KeyboardInterrupt):
        push(stage(staged, b"another graph"), tmp_path / "serving", "model")
    assert seen == [["1"]]
    assert contents(earlier) == before
    assert sorted(os.listdir(earlier.parent)) == [".lock", ".pushes", "1"]


def test_an_interrupted_copy_in_an_object_store_is_taken_back(staged, monkeypatch):
    address = next(_MEMORY_ROOTS)
    versions.publish(staged, address)
    store, root = fsspec.url_to_fs(address)
    copied = []
    copy = type(store).cp_file

    def fail(self, source, target, **options):
        copied.append(target)
        if len(copied) == 3:
            raise OSError("The connection was lost")
        copy(self, source, target, **options)

    monkeypatch.setattr(type(store), "cp_file", fail)
    with pytest.raises(SfmError, match="Cannot push to memory.*: The connection was lost; check"):
        versions.publish(staged, address)
    assert copied[0].startswith(f"{root}/2/")
    assert {path.removeprefix(root).split("/")[1] for path in store.find(root)} == {"1", ".pushes"}
    monkeypatch.undo()
    assert versions.publish(staged, address) == 3


def test_a_version_taken_meanwhile_is_not_replaced(staged, address, monkeypatch):
    for _ in range(2):
        versions.publish(staged, address)
    # As another pusher would see it that listed the folder before version 1 was there.
    monkeypatch.setattr(versions, "_next", lambda target: 1)
    assert versions.publish(staged, address) == 3


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "/root", "a\nb", "a b", ".hidden"])
def test_names_that_are_no_folder_name_are_refused(staged, tmp_path, name):
    with pytest.raises(SfmError, match="Invalid model_name"):
        push(staged, tmp_path / "serving", name)
    assert not (tmp_path / "serving").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")] * 9),
    ],
    ids=["one file", "a folder"],
)
def test_a_full_disk_is_told_in_one_line_and_the_next_push_works(
    staged, tmp_path, monkeypatch, error
):
    address = tmp_path / "model"
    assert [versions.publish(staged, address) for _ in range(2)] == [1, 2]
    copied = []

    def fill(source, target):
        copied.append(target)
        if len(copied) == 3:
            raise error
        pathlib.Path(target).write_bytes(b"")

    for change in (
        lambda: versions.publish(staged, address),
        lambda: versions.rollback(address, 1),
    ):
        copied.clear()
        with monkeypatch.context() as patch:
            patch.setattr("shutil.copyfile", fill)
            with pytest.raises(SfmError, match="No space left on device.*; check that") as caught:
                change()
        assert len(copied) == 3
        assert "[(" not in str(caught.value)
        left = sorted(name for name in os.listdir(address) if name not in (".lock", ".pushes"))
        assert left == ["1", "2"]
    assert versions.publish(staged, address) == 3


def test_a_serving_folder_that_is_a_file_is_named_in_the_error(staged, tmp_path):
    (tmp_path / "serving").write_text("a file")
    with pytest.raises(SfmError, match=r"Cannot push to .*serving.*; check that the folder"):
        push(staged, tmp_path / "serving", "model")


@pytest.mark.parametrize(
    ("action", "argument", "suffix", "message"),
    [
        (versions.rollback, 3, "", "No version 3 in .*; expected one of 1, 2"),
        (versions.keep_newest, 0, "", "Cannot keep 0 versions; expected at"),
        (versions.rollback, 1, "s", "No model versions in .*models; export"),
        (versions.keep_newest, 1, "s", "No model versions in .*models"),
    ],
)
def test_mistakes_are_named_and_change_nothing(staged, address, action, argument, suffix, message):
    for _ in range(2):
        versions.publish(staged, address)
    with pytest.raises(SfmError, match=message):
        action(address + suffix, argument)
    assert numbers(address) == [1, 2]
    assert suffix == "" or open_folder(address + suffix).names() == []


@pytest.mark.parametrize("address", ["models", "gopher://bucket/model"])
def test_a_folder_without_a_model_is_not_pushed(tmp_path, address):
    with pytest.raises(SfmError, match="Cannot push .*absent: it has no saved_model.pb"):
        versions.publish(tmp_path / "absent", address)


_PUSHER = """
import pathlib, sys
from sfm_tf.serving import versions
staged, folder, count = sys.argv[1:]
print("started", flush=True)
for _ in range(int(count)):
    print(versions.publish(pathlib.Path(staged), folder), flush=True)
"""


def start_pusher(staged, address, count):
    root = pathlib.Path(versions.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _PUSHER, str(staged), str(address), str(count)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    return process


def test_a_push_that_is_killed_harms_nothing_and_the_next_one_clears_it(tmp_path):
    staged = stage(tmp_path / "staged", b"x" * 300_000)
    address = tmp_path / "model"
    before = versions.publish(staged, address)
    unfinished = 0
    for attempt in range(12):
        process = start_pusher(staged, address, 1_000)
        # Killed at another moment of a push each time, and surely while it pushes.
        process.stdout.readline()
        time.sleep(0.0023 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        unfinished += any(name.startswith(".incoming-") for name in os.listdir(address))
        expected = contents(staged)
        assert all(contents(address / name) == expected for name in seen_by_a_server(address))
    assert unfinished > 0
    after = versions.publish(staged, address)
    assert after > before
    assert not [name for name in os.listdir(address) if name.startswith((".incoming", ".outgoing"))]
    assert versions.served_version(address).number == after


def test_two_pushes_at_once_get_different_numbers(tmp_path):
    staged = stage(tmp_path / "staged")
    processes = [start_pusher(staged, tmp_path / "model", 15) for _ in range(2)]
    given = [[int(line) for line in process.communicate()[0].split()] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(given[0] + given[1]) == list(range(1, 31))
    assert all(each == sorted(each) for each in given)
    assert seen_by_a_server(tmp_path / "model") == sorted(map(str, range(1, 31)))


def poll(root: pathlib.Path, stop: threading.Event, mixed: list, seen: set) -> None:
    """Loads the highest version again and again, as a server would, and notes what is not whole."""
    while not stop.is_set():
        highest = max(map(int, seen_by_a_server(root)), default=None) if root.exists() else None
        if highest is None:
            continue
        found = {}
        for part in FILES:
            with contextlib.suppress(FileNotFoundError):
                found[part] = (root / str(highest) / part).read_bytes()
        # A version that was deleted meanwhile is not what a server would go on serving.
        if (root / str(highest)).exists():
            seen.add(highest)
            if found != dict.fromkeys(FILES, b"model %d" % highest):
                mixed.append((highest, found))


def test_a_polling_server_never_sees_a_half_or_mixed_version(tmp_path):
    address = tmp_path / "model"
    stop, mixed, seen = threading.Event(), [], set()
    server = threading.Thread(target=poll, args=(address, stop, mixed, seen))
    server.start()
    try:
        for number in range(1, 31):
            staged = stage(tmp_path / "staged", b"model %d" % number)
            assert versions.publish(staged, address) == number
            if number > 10:
                versions.keep_newest(address, 2)
    finally:
        stop.set()
        server.join()
    assert mixed == []
    assert len(seen) > 10


def test_a_server_that_polls_an_object_store_finds_all_files_once_it_finds_the_graph(tmp_path):
    address = next(_MEMORY_ROOTS)
    store, root = fsspec.url_to_fs(address)
    stop, mixed, seen = threading.Event(), [], set()

    def serve():
        while not stop.is_set():
            for number in range(1, 21):
                if store.exists(f"{root}/{number}/saved_model.pb"):
                    seen.add(number)
                    found = {store.cat_file(f"{root}/{number}/{part}") for part in PARTS}
                    if found != {b"model %d" % number}:
                        mixed.append(number)

    server = threading.Thread(target=serve)
    server.start()
    try:
        for number in range(1, 21):
            versions.publish(stage(tmp_path / "staged", b"model %d" % number), address)
        while len(seen) < 20 and server.is_alive():
            time.sleep(0.01)
    finally:
        stop.set()
        server.join()
    assert mixed == []
    assert seen == set(range(1, 21))


def test_the_library_does_not_need_tensorflow_for_this():
    root = pathlib.Path(versions.__file__).parents[2]
    code = "import sys, sfm_tf.serving.versions; sys.exit('tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert result.returncode == 0
