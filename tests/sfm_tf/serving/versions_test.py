"""A push must be all or nothing for a server that polls the folder, whatever stops it."""

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

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving import versions
from sfm_tf.serving.versions import LocalModelFolder, RemoteModelFolder, open_remote


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


fsspec = pytest.importorskip("fsspec")
_ROOTS = (f"memory://remote-{number}/models/model" for number in itertools.count())


@pytest.fixture
def remote_model_folder_folder():
    return open_remote(next(_ROOTS))


@pytest.fixture
def staged(tmp_path):
    (tmp_path / "staged" / "variables").mkdir(parents=True)
    (tmp_path / "staged" / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "staged" / "variables" / "index").write_bytes(b"12")
    (tmp_path / "staged" / "zebra").write_bytes(b"")
    return tmp_path / "staged"


def test_remote_model_folder_reads_names_sizes_and_contents(remote_model_folder_folder, staged):
    assert remote_model_folder_folder.names() == []
    remote_model_folder_folder.reveal(remote_model_folder_folder.upload(staged), "1")
    assert "1" in remote_model_folder_folder.names()
    assert sorted(remote_model_folder_folder.names("1")) == ["saved_model.pb", "variables", "zebra"]
    assert remote_model_folder_folder.files("1") == {
        "saved_model.pb": 5,
        "variables/index": 2,
        "zebra": 0,
    }
    assert remote_model_folder_folder.files("absent") == {}
    assert remote_model_folder_folder.read("1/variables/index") == b"12"
    assert remote_model_folder_folder.read("1/absent") is None


def test_an_object_is_created_once(remote_model_folder_folder):
    assert remote_model_folder_folder.create(".pushes/1.json", b"first")
    assert not remote_model_folder_folder.create(".pushes/1.json", b"second")
    assert remote_model_folder_folder.read(".pushes/1.json") == b"first"


def test_of_two_processes_that_found_nothing_the_store_chooses_one(
    remote_model_folder_folder, monkeypatch
):
    modes = []

    def refuse(self, path, value, mode="overwrite", **options):
        # As gcsfs and s3fs answer if the object came into being since it was looked for.
        modes.append(mode)
        raise FileExistsError(path)

    monkeypatch.setattr(type(remote_model_folder_folder.filesystem), "pipe_file", refuse)
    assert not remote_model_folder_folder.create(".pushes/1.json", b"second")
    assert modes == ["create"]


@pytest.fixture
def recorded(remote_model_folder_folder, monkeypatch):
    """The changes made to the store, in order."""
    changes = []
    for name in ("cp_file", "rm_file", "_rm"):
        original = getattr(type(remote_model_folder_folder.filesystem), name)

        def spy(self, *paths, _original=original, _name=name, **options):
            changes.append(
                (_name, *[path.removeprefix(remote_model_folder_folder.root) for path in paths])
            )
            return _original(self, *paths, **options)

        monkeypatch.setattr(type(remote_model_folder_folder.filesystem), name, spy)
    return changes


def test_the_graph_is_copied_last_and_deleted_first(remote_model_folder_folder, staged, recorded):
    incoming = remote_model_folder_folder.upload(staged)
    assert recorded == []
    remote_model_folder_folder.reveal(incoming, "1")
    assert [target for _, _, target in recorded] == [
        "/1/variables/index",
        "/1/zebra",
        "/1/saved_model.pb",
    ]
    recorded.clear()
    remote_model_folder_folder.delete("1")
    assert recorded[0][1] == "/1/saved_model.pb"
    assert remote_model_folder_folder.files("1") == {}
    assert "1" not in remote_model_folder_folder.names()


def test_only_uploads_that_are_older_than_a_day_are_cleared(remote_model_folder_folder):
    old, new = int(time.time()) - 90_000, int(time.time()) - 80_000
    for name in (f".incoming-{old}-aa", f".incoming-{new}-bb", ".incoming-x", "7"):
        remote_model_folder_folder.filesystem.pipe_file(f"{folder.root}/{name}/saved_model.pb", b"")
    with remote_model_folder_folder.exclusive():
        assert sorted(remote_model_folder_folder.names()) == sorted(
            [f".incoming-{new}-bb", ".incoming-x", "7"]
        )


def test_a_failed_upload_leaves_nothing(remote_model_folder_folder, staged, monkeypatch):
    def fail(self, source, target, **options):
        self.pipe_file(target, b"half")
        raise OSError("The connection was lost")

    monkeypatch.setattr(type(remote_model_folder_folder.filesystem), "put_file", fail)
    with pytest.raises(OSError, match="connection"):
        remote_model_folder_folder.upload(staged)
    assert remote_model_folder_folder.names() == []


@pytest.mark.parametrize("address", ["gopher://bucket/model", "nothing-such+x://bucket/model"])
def test_addresses_that_no_package_serves_are_refused(address):
    with pytest.raises(SfmError, match="Cannot reach .*: Protocol not known.*; install fsspec and"):
        open_remote(address)


def test_without_fsspec_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SfmError, match="Cannot reach gs://bucket/m: .*install fsspec and its pack"):
        open_remote("gs://bucket/m")


def test_works_on_a_file_system_with_real_folders(tmp_path, staged):
    remote_model_folder_folder = RemoteModelFolder(
        fsspec.filesystem("file", auto_mkdir=True), str(tmp_path / "model")
    )
    assert remote_model_folder_folder.create(".pushes/1.json", b"first")
    assert not remote_model_folder_folder.create(".pushes/1.json", b"second")
    incoming = remote_model_folder_folder.upload(staged)
    remote_model_folder_folder.reveal(incoming, "1")
    remote_model_folder_folder.delete(incoming)
    diff = subprocess.run(["diff", "-r", staged, tmp_path / "model" / "1"], check=False)
    assert diff.returncode == 0
    remote_model_folder_folder.delete("1")
    assert remote_model_folder_folder.names() == [".pushes"]


PARTS = ("variables/variables.index", "variables/variables.data", "assets.extra/names.json")
_MEMORY_ROOTS = (f"memory://bucket-{number}/models/model" for number in itertools.count())


def stage(versions_folder: pathlib.Path, content: bytes = b"graph") -> pathlib.Path:
    for part in (*PARTS, "saved_model.pb"):
        (versions_folder / part).parent.mkdir(parents=True, exist_ok=True)
        (versions_folder / part).write_bytes(content)
    return versions_folder


@pytest.fixture
def versions_staged(tmp_path):
    return stage(tmp_path / "staged")


@pytest.fixture(params=["local", "memory"])
def versions_folder(request, tmp_path):
    """The folder of a model on this machine, and one in an object store."""
    if request.param == "local":
        return str(tmp_path / "serving" / "model")
    pytest.importorskip("fsspec")
    return next(_MEMORY_ROOTS)


def contents(versions_folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in versions_folder.rglob("*") if path.is_file())
    return {path.relative_to(versions_folder).as_posix(): path.read_bytes() for path in files}


def push(versions_staged: pathlib.Path, serving: pathlib.Path, name: str) -> pathlib.Path:
    versions_folder = versions.model_folder(serving, name)
    return pathlib.Path(versions_folder, str(versions.publish(versions_staged, versions_folder)))


def seen_by_a_server(versions_folder: pathlib.Path) -> list[str]:
    """Names that TensorFlow Serving takes for versions: those that it can parse as integers."""
    return sorted(name for name in os.listdir(versions_folder) if name.isdecimal())


def numbers(versions_folder: str) -> list[int]:
    return [version.number for version in versions.list_versions(versions_folder)]


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


def test_an_absent_folder_has_no_latest_version_and_its_next_is_one(versions_folder):
    assert versions.next_version(versions_folder) == 1
    assert versions.latest_version(versions_folder) is None
    assert versions.list_versions(versions_folder) == []


def test_pushed_versions_are_whole_copies_that_count_up(versions_staged, tmp_path):
    serving = tmp_path / "new" / "serving"
    pushed = [push(versions_staged, serving, "model") for _ in range(3)]
    assert [path.relative_to(serving).as_posix() for path in pushed] == [
        "model/1",
        "model/2",
        "model/3",
    ]
    assert seen_by_a_server(serving / "model") == ["1", "2", "3"]
    for path in pushed:
        assert contents(path) == dict.fromkeys((*PARTS, "saved_model.pb"), b"graph")


def test_an_object_store_gets_the_same_files(versions_staged):
    fsspec = pytest.importorskip("fsspec")
    versions_folder = next(_MEMORY_ROOTS)
    assert [versions.publish(versions_staged, versions_folder) for _ in range(2)] == [1, 2]
    store, root = fsspec.url_to_fs(versions_folder)
    for number in (1, 2):
        for part in (*PARTS, "saved_model.pb"):
            assert store.cat_file(f"{root}/{number}/{part}") == b"graph"
    assert not [path for path in store.find(root) if ".incoming" in path]


def test_a_number_is_never_given_again(versions_staged, versions_folder):
    assert [versions.publish(versions_staged, versions_folder) for _ in range(3)] == [1, 2, 3]
    versions._open(versions_folder).delete("3")
    assert versions.publish(versions_staged, versions_folder) == 4
    assert versions.keep_newest(versions_folder, 1) == [1, 2]
    versions._open(versions_folder).delete("4")
    assert numbers(versions_folder) == []
    assert versions.next_version(versions_folder) == 5
    assert versions.publish(versions_staged, versions_folder) == 5


def test_keeps_the_newest(versions_staged, versions_folder):
    for _ in range(5):
        versions.publish(versions_staged, versions_folder)
    assert versions.keep_newest(versions_folder, 7) == []
    assert versions.keep_newest(versions_folder, 2) == [1, 2, 3]
    assert numbers(versions_folder) == [4, 5]
    assert all(version.complete for version in versions.list_versions(versions_folder))


def test_keeping_counts_only_what_a_server_can_load(versions_staged, tmp_path):
    versions_folder = tmp_path / "model"
    for _ in range(4):
        versions.publish(versions_staged, versions_folder)
    (versions_folder / "2" / "saved_model.pb").unlink()
    (versions_folder / "9").mkdir()
    assert versions.keep_newest(versions_folder, 2) == [1, 2]
    assert seen_by_a_server(versions_folder) == ["3", "4", "9"]


def test_rolling_back_makes_a_copy_the_highest_version(tmp_path, versions_folder):
    for number in (1, 2, 3):
        versions.publish(stage(tmp_path / f"staged{number}", b"model %d" % number), versions_folder)
    assert versions.rollback(versions_folder, 1) == 4
    assert versions.latest_version(versions_folder) == 4
    target = versions._open(versions_folder)
    for part in (*PARTS, "saved_model.pb"):
        assert target.read(f"4/{part}") == b"model 1"
        assert target.read(f"1/{part}") == b"model 1"
    assert [version.copy_of for version in versions.list_versions(versions_folder)] == [
        None,
        None,
        None,
        1,
    ]
    # Asked again, there is nothing left to do.
    assert versions.rollback(versions_folder, 1) == 4
    assert versions.rollback(versions_folder, 4) == 4
    assert versions.rollback(versions_folder, 3) == 5


def test_models_are_the_folders_with_versions(versions_staged, tmp_path):
    for name in ("digits", "cifar-10"):
        push(versions_staged, tmp_path, name)
    for versions_folder in ("empty", ".hidden/1", "a name/1"):
        (tmp_path / versions_folder).mkdir(parents=True)
    (tmp_path / "models.config").write_text("")
    assert versions.find_models(tmp_path) == ["cifar-10", "digits"]
    assert versions.find_models(tmp_path / "absent") == []


def test_lists_what_each_version_tells_of_itself(tmp_path, versions_staged):
    versions_folder = tmp_path / "model"
    versions.publish(versions_staged, versions_folder)
    (versions_staged / "assets.extra" / "manifest.json").write_text('{"blessed": false}')
    (versions_staged / "assets.extra" / "MODEL_CARD.md").write_text("# Card")
    versions.publish(versions_staged, versions_folder)
    (versions_folder / "7").mkdir()
    first, second, third = versions.list_versions(versions_folder)
    assert (first.number, first.size_bytes, first.complete) == (1, 4 * len("graph"), True)
    assert (first.blessed, first.has_model_card) == (None, False)
    assert (second.blessed, second.has_model_card) == (False, True)
    assert second.size_bytes == 4 * len("graph") + len('{"blessed": false}') + len("# Card")
    assert first.pushed_at == time.strftime("%Y-%m-%dT", time.gmtime()) + first.pushed_at[11:]
    assert (third.complete, third.pushed_at) == (False, None)


def test_a_damaged_record_tells_nothing_and_stops_nothing(versions_staged, tmp_path):
    versions_folder = tmp_path / "model"
    versions.publish(versions_staged, versions_folder)
    (versions_folder / ".pushes" / "1.json").write_text('{"pushed_')
    assert versions.list_versions(versions_folder)[0].pushed_at is None
    assert versions.publish(versions_staged, versions_folder) == 2


def test_stopped_before_the_rename_leaves_the_earlier_version_as_it_was(
    versions_staged, tmp_path, monkeypatch
):
    earlier = push(versions_staged, tmp_path / "serving", "model")
    before = contents(earlier)
    seen = []

    def stop(self, incoming, version):
        seen.append(seen_by_a_server(earlier.parent))
        assert contents(earlier.parent / incoming) != {}
        raise KeyboardInterrupt

    monkeypatch.setattr(versions.LocalModelFolder, "reveal", stop)
    with pytest.raises(KeyboardInterrupt):
        push(stage(versions_staged, b"another graph"), tmp_path / "serving", "model")
    assert seen == [["1"]]
    assert contents(earlier) == before
    assert sorted(os.listdir(earlier.parent)) == [".lock", ".pushes", "1"]


def test_an_interrupted_copy_in_an_object_store_is_taken_back(versions_staged, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    versions_folder = next(_MEMORY_ROOTS)
    versions.publish(versions_staged, versions_folder)
    store, root = fsspec.url_to_fs(versions_folder)
    copied = []
    copy = type(store).cp_file

    def fail(self, source, target, **options):
        copied.append(target)
        if len(copied) == 3:
            raise OSError("The connection was lost")
        copy(self, source, target, **options)

    monkeypatch.setattr(type(store), "cp_file", fail)
    with pytest.raises(SfmError, match="Cannot push to memory.*: The connection was lost; check"):
        versions.publish(versions_staged, versions_folder)
    assert copied[0].startswith(f"{root}/2/")
    assert {path.removeprefix(root).split("/")[1] for path in store.find(root)} == {"1", ".pushes"}
    monkeypatch.undo()
    assert versions.publish(versions_staged, versions_folder) == 3


def test_a_version_taken_meanwhile_is_not_replaced(versions_staged, versions_folder, monkeypatch):
    for _ in range(2):
        versions.publish(versions_staged, versions_folder)
    # As another pusher would see it that listed the folder before version 1 was there.
    monkeypatch.setattr(versions, "_next", lambda target: 1)
    assert versions.publish(versions_staged, versions_folder) == 3


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "/root", "a\nb", "a b", ".hidden"])
def test_names_that_are_no_folder_name_are_refused(versions_staged, tmp_path, name):
    with pytest.raises(SfmError, match="Invalid model_name"):
        push(versions_staged, tmp_path / "serving", name)
    assert not (tmp_path / "serving").exists()


def test_a_serving_folder_that_is_a_file_is_named_in_the_error(versions_staged, tmp_path):
    (tmp_path / "serving").write_text("a file")
    with pytest.raises(SfmError, match=r"Cannot push to .*serving.*; check that the folder"):
        push(versions_staged, tmp_path / "serving", "model")


def test_a_full_disk_leaves_no_half_copy(versions_staged, tmp_path, monkeypatch):
    def fail(source, target):
        pathlib.Path(target).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(versions.shutil, "copytree", fail)
    with pytest.raises(SfmError, match="No space left on device"):
        push(versions_staged, tmp_path / "serving", "model")
    assert os.listdir(tmp_path / "serving" / "model") == [".lock"]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            lambda versions_folder: versions.rollback(versions_folder, 3),
            "No version 3 in .*; expected one of 1, 2",
        ),
        (
            lambda versions_folder: versions.keep_newest(versions_folder, 0),
            "Cannot keep 0 versions; expected at",
        ),
        (
            lambda versions_folder: versions.rollback(versions_folder + "s", 1),
            "No model versions in .*models; export",
        ),
        (
            lambda versions_folder: versions.keep_newest(versions_folder + "s", 1),
            "No model versions in .*models",
        ),
        (
            lambda versions_folder: versions.publish(pathlib.Path("absent"), versions_folder),
            "Cannot push absent: it has no saved_model.pb",
        ),
        (
            lambda versions_folder: versions.publish(pathlib.Path("."), "gopher://bucket/model"),
            "Cannot push .: it has no saved_model.pb",
        ),
    ],
)
def test_mistakes_are_named(versions_staged, versions_folder, action, message):
    for _ in range(2):
        versions.publish(versions_staged, versions_folder)
    with pytest.raises(SfmError, match=message):
        action(versions_folder)
    assert numbers(versions_folder) == [1, 2]


def test_nothing_is_created_by_a_mistyped_folder(tmp_path):
    with pytest.raises(SfmError):
        versions.keep_newest(tmp_path / "mistyped", 1)
    assert not (tmp_path / "mistyped").exists()


_PUSHER = """
import pathlib, sys
from sfm_tf.serving import versions
staged, folder, count = sys.argv[1:]
print("started", flush=True)
for _ in range(int(count)):
    print(versions.publish(pathlib.Path(staged), folder), flush=True)
"""


def start_pusher(versions_staged, versions_folder, count):
    root = pathlib.Path(versions.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _PUSHER, str(versions_staged), str(versions_folder), str(count)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    return process


def test_a_push_that_is_killed_harms_nothing_and_the_next_one_clears_it(tmp_path):
    versions_staged = stage(tmp_path / "staged", b"x" * 300_000)
    versions_folder = tmp_path / "model"
    before = versions.publish(versions_staged, versions_folder)
    unfinished = 0
    for attempt in range(12):
        process = start_pusher(versions_staged, versions_folder, 1_000)
        # Killed at another moment of a push each time, and surely while it pushes.
        process.stdout.readline()
        time.sleep(0.0023 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        unfinished += any(name.startswith(".incoming-") for name in os.listdir(versions_folder))
        expected = contents(versions_staged)
        assert all(
            contents(versions_folder / name) == expected
            for name in seen_by_a_server(versions_folder)
        )
    assert unfinished > 0
    after = versions.publish(versions_staged, versions_folder)
    assert after > before
    assert not [
        name for name in os.listdir(versions_folder) if name.startswith((".incoming", ".outgoing"))
    ]
    assert versions.latest_version(versions_folder) == after


def test_two_pushes_at_once_get_different_numbers(tmp_path):
    versions_staged = stage(tmp_path / "staged")
    processes = [start_pusher(versions_staged, tmp_path / "model", 15) for _ in range(2)]
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
        for part in (*PARTS, "saved_model.pb"):
            path = root / str(highest) / part
            found[part] = path.read_bytes() if path.exists() else None
        # A version that was deleted meanwhile is not what a server would go on serving.
        if (root / str(highest)).exists():
            seen.add(highest)
            if found != dict.fromkeys(found, b"model %d" % highest):
                mixed.append((highest, found))


@pytest.mark.parametrize("keep", [0, 2])
def test_a_polling_server_never_sees_a_half_or_mixed_version_in_fifty_pushes(tmp_path, keep):
    versions_folder = tmp_path / "model"
    stop, mixed, seen = threading.Event(), [], set()
    server = threading.Thread(target=poll, args=(versions_folder, stop, mixed, seen))
    server.start()
    try:
        for number in range(1, 51):
            versions_staged = stage(tmp_path / "staged", b"model %d" % number)
            assert versions.publish(versions_staged, versions_folder) == number
            if keep:
                versions.keep_newest(versions_folder, keep)
    finally:
        stop.set()
        server.join()
    assert mixed == []
    assert len(seen) > 10


def test_a_server_that_polls_an_object_store_finds_all_files_once_it_finds_the_graph(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    versions_folder = next(_MEMORY_ROOTS)
    store, root = fsspec.url_to_fs(versions_folder)
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
            versions.publish(stage(tmp_path / "staged", b"model %d" % number), versions_folder)
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


def test_removing_the_whole_folder_starts_again_at_one(versions_staged, tmp_path):
    versions_folder = tmp_path / "model"
    versions.publish(versions_staged, versions_folder)
    shutil.rmtree(versions_folder)
    assert versions.publish(versions_staged, versions_folder) == 1
