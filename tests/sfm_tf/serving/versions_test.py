"""A push must be all or nothing for a server that polls the folder, whatever stops it."""

import itertools
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
from sfm_tf.serving import local_model_folder, versions

PARTS = ("variables/variables.index", "variables/variables.data", "assets.extra/names.json")
_MEMORY_ROOTS = (f"memory://bucket-{number}/models/model" for number in itertools.count())


def stage(folder: pathlib.Path, content: bytes = b"graph") -> pathlib.Path:
    for part in (*PARTS, "saved_model.pb"):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_bytes(content)
    return folder


@pytest.fixture
def staged(tmp_path):
    return stage(tmp_path / "staged")


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    """The folder of a model on this machine, and one in an object store."""
    if request.param == "local":
        return str(tmp_path / "serving" / "model")
    pytest.importorskip("fsspec")
    return next(_MEMORY_ROOTS)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def push(staged: pathlib.Path, serving: pathlib.Path, name: str) -> pathlib.Path:
    folder = versions.model_folder(serving, name)
    return pathlib.Path(folder, str(versions.publish(staged, folder)))


def seen_by_a_server(folder: pathlib.Path) -> list[str]:
    """Names that TensorFlow Serving takes for versions: those that it can parse as integers."""
    return sorted(name for name in os.listdir(folder) if name.isdecimal())


def numbers(folder: str) -> list[int]:
    return [version.number for version in versions.list_versions(folder)]


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


def test_an_absent_folder_has_no_latest_version_and_its_next_is_one(folder):
    assert versions.next_version(folder) == 1
    assert versions.latest_version(folder) is None
    assert versions.list_versions(folder) == []


def test_pushed_versions_are_whole_copies_that_count_up(staged, tmp_path):
    serving = tmp_path / "new" / "serving"
    pushed = [push(staged, serving, "model") for _ in range(3)]
    assert [path.relative_to(serving).as_posix() for path in pushed] == [
        "model/1",
        "model/2",
        "model/3",
    ]
    assert seen_by_a_server(serving / "model") == ["1", "2", "3"]
    for path in pushed:
        assert contents(path) == dict.fromkeys((*PARTS, "saved_model.pb"), b"graph")


def test_an_object_store_gets_the_same_files(staged):
    fsspec = pytest.importorskip("fsspec")
    folder = next(_MEMORY_ROOTS)
    assert [versions.publish(staged, folder) for _ in range(2)] == [1, 2]
    store, root = fsspec.url_to_fs(folder)
    for number in (1, 2):
        for part in (*PARTS, "saved_model.pb"):
            assert store.cat_file(f"{root}/{number}/{part}") == b"graph"
    assert not [path for path in store.find(root) if ".incoming" in path]


def test_a_number_is_never_given_again(staged, folder):
    assert [versions.publish(staged, folder) for _ in range(3)] == [1, 2, 3]
    versions._open(folder).delete("3")
    assert versions.publish(staged, folder) == 4
    assert versions.keep_newest(folder, 1) == [1, 2]
    versions._open(folder).delete("4")
    assert numbers(folder) == []
    assert versions.next_version(folder) == 5
    assert versions.publish(staged, folder) == 5


def test_keeps_the_newest(staged, folder):
    for _ in range(5):
        versions.publish(staged, folder)
    assert versions.keep_newest(folder, 7) == []
    assert versions.keep_newest(folder, 2) == [1, 2, 3]
    assert numbers(folder) == [4, 5]
    assert all(version.complete for version in versions.list_versions(folder))


def test_keeping_counts_only_what_a_server_can_load(staged, tmp_path):
    folder = tmp_path / "model"
    for _ in range(4):
        versions.publish(staged, folder)
    (folder / "2" / "saved_model.pb").unlink()
    (folder / "9").mkdir()
    assert versions.keep_newest(folder, 2) == [1, 2]
    assert seen_by_a_server(folder) == ["3", "4", "9"]


def test_rolling_back_makes_a_copy_the_highest_version(tmp_path, folder):
    for number in (1, 2, 3):
        versions.publish(stage(tmp_path / f"staged{number}", b"model %d" % number), folder)
    assert versions.rollback(folder, 1) == 4
    assert versions.latest_version(folder) == 4
    target = versions._open(folder)
    for part in (*PARTS, "saved_model.pb"):
        assert target.read(f"4/{part}") == b"model 1"
        assert target.read(f"1/{part}") == b"model 1"
    assert [version.copy_of for version in versions.list_versions(folder)] == [None, None, None, 1]
    # Asked again, there is nothing left to do.
    assert versions.rollback(folder, 1) == 4
    assert versions.rollback(folder, 4) == 4
    assert versions.rollback(folder, 3) == 5


def test_models_are_the_folders_with_versions(staged, tmp_path):
    for name in ("digits", "cifar-10"):
        push(staged, tmp_path, name)
    for folder in ("empty", ".hidden/1", "a name/1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "models.config").write_text("")
    assert versions.find_models(tmp_path) == ["cifar-10", "digits"]
    assert versions.find_models(tmp_path / "absent") == []


def test_lists_what_each_version_tells_of_itself(tmp_path, staged):
    folder = tmp_path / "model"
    versions.publish(staged, folder)
    (staged / "assets.extra" / "manifest.json").write_text('{"blessed": false}')
    (staged / "assets.extra" / "MODEL_CARD.md").write_text("# Card")
    versions.publish(staged, folder)
    (folder / "7").mkdir()
    first, second, third = versions.list_versions(folder)
    assert (first.number, first.size_bytes, first.complete) == (1, 4 * len("graph"), True)
    assert (first.blessed, first.has_model_card) == (None, False)
    assert (second.blessed, second.has_model_card) == (False, True)
    assert second.size_bytes == 4 * len("graph") + len('{"blessed": false}') + len("# Card")
    assert first.pushed_at == time.strftime("%Y-%m-%dT", time.gmtime()) + first.pushed_at[11:]
    assert (third.complete, third.pushed_at) == (False, None)


def test_a_damaged_record_tells_nothing_and_stops_nothing(staged, tmp_path):
    folder = tmp_path / "model"
    versions.publish(staged, folder)
    (folder / ".pushes" / "1.json").write_text('{"pushed_')
    assert versions.list_versions(folder)[0].pushed_at is None
    assert versions.publish(staged, folder) == 2


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

    monkeypatch.setattr(local_model_folder.LocalModelFolder, "reveal", stop)
    with pytest.raises(KeyboardInterrupt):
        push(stage(staged, b"another graph"), tmp_path / "serving", "model")
    assert seen == [["1"]]
    assert contents(earlier) == before
    assert sorted(os.listdir(earlier.parent)) == [".lock", ".pushes", "1"]


def test_an_interrupted_copy_in_an_object_store_is_taken_back(staged, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    folder = next(_MEMORY_ROOTS)
    versions.publish(staged, folder)
    store, root = fsspec.url_to_fs(folder)
    copied = []
    copy = type(store).cp_file

    def fail(self, source, target, **options):
        copied.append(target)
        if len(copied) == 3:
            raise OSError("The connection was lost")
        copy(self, source, target, **options)

    monkeypatch.setattr(type(store), "cp_file", fail)
    with pytest.raises(SfmError, match="Cannot push to memory.*: The connection was lost; check"):
        versions.publish(staged, folder)
    assert copied[0].startswith(f"{root}/2/")
    assert {path.removeprefix(root).split("/")[1] for path in store.find(root)} == {"1", ".pushes"}
    monkeypatch.undo()
    assert versions.publish(staged, folder) == 3


def test_a_version_taken_meanwhile_is_not_replaced(staged, folder, monkeypatch):
    for _ in range(2):
        versions.publish(staged, folder)
    # As another pusher would see it that listed the folder before version 1 was there.
    monkeypatch.setattr(versions, "_next", lambda target: 1)
    assert versions.publish(staged, folder) == 3


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "/root", "a\nb", "a b", ".hidden"])
def test_names_that_are_no_folder_name_are_refused(staged, tmp_path, name):
    with pytest.raises(SfmError, match="Invalid model_name"):
        push(staged, tmp_path / "serving", name)
    assert not (tmp_path / "serving").exists()


def test_a_serving_folder_that_is_a_file_is_named_in_the_error(staged, tmp_path):
    (tmp_path / "serving").write_text("a file")
    with pytest.raises(SfmError, match=r"Cannot push to .*serving.*; check that the folder"):
        push(staged, tmp_path / "serving", "model")


def test_a_full_disk_leaves_no_half_copy(staged, tmp_path, monkeypatch):
    def fail(source, target):
        pathlib.Path(target).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local_model_folder.shutil, "copytree", fail)
    with pytest.raises(SfmError, match="No space left on device"):
        push(staged, tmp_path / "serving", "model")
    assert os.listdir(tmp_path / "serving" / "model") == [".lock"]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda folder: versions.rollback(folder, 3), "No version 3 in .*; expected one of 1, 2"),
        (lambda folder: versions.keep_newest(folder, 0), "Cannot keep 0 versions; expected at"),
        (
            lambda folder: versions.rollback(folder + "s", 1),
            "No model versions in .*models; export",
        ),
        (lambda folder: versions.keep_newest(folder + "s", 1), "No model versions in .*models"),
        (
            lambda folder: versions.publish(pathlib.Path("absent"), folder),
            "Cannot push absent: it has no saved_model.pb",
        ),
        (
            lambda folder: versions.publish(pathlib.Path("."), "gopher://bucket/model"),
            "Cannot push .: it has no saved_model.pb",
        ),
    ],
)
def test_mistakes_are_named(staged, folder, action, message):
    for _ in range(2):
        versions.publish(staged, folder)
    with pytest.raises(SfmError, match=message):
        action(folder)
    assert numbers(folder) == [1, 2]


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


def start_pusher(staged, folder, count):
    root = pathlib.Path(versions.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _PUSHER, str(staged), str(folder), str(count)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    return process


def test_a_push_that_is_killed_harms_nothing_and_the_next_one_clears_it(tmp_path):
    staged = stage(tmp_path / "staged", b"x" * 300_000)
    folder = tmp_path / "model"
    before = versions.publish(staged, folder)
    unfinished = 0
    for attempt in range(12):
        process = start_pusher(staged, folder, 1_000)
        # Killed at another moment of a push each time, and surely while it pushes.
        process.stdout.readline()
        time.sleep(0.0023 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        unfinished += any(name.startswith(".incoming-") for name in os.listdir(folder))
        expected = contents(staged)
        assert all(contents(folder / name) == expected for name in seen_by_a_server(folder))
    assert unfinished > 0
    after = versions.publish(staged, folder)
    assert after > before
    assert not [name for name in os.listdir(folder) if name.startswith((".incoming", ".outgoing"))]
    assert versions.latest_version(folder) == after


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
    folder = tmp_path / "model"
    stop, mixed, seen = threading.Event(), [], set()
    server = threading.Thread(target=poll, args=(folder, stop, mixed, seen))
    server.start()
    try:
        for number in range(1, 51):
            staged = stage(tmp_path / "staged", b"model %d" % number)
            assert versions.publish(staged, folder) == number
            if keep:
                versions.keep_newest(folder, keep)
    finally:
        stop.set()
        server.join()
    assert mixed == []
    assert len(seen) > 10


def test_a_server_that_polls_an_object_store_finds_all_files_once_it_finds_the_graph(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    folder = next(_MEMORY_ROOTS)
    store, root = fsspec.url_to_fs(folder)
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
            versions.publish(stage(tmp_path / "staged", b"model %d" % number), folder)
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


def test_removing_the_whole_folder_starts_again_at_one(staged, tmp_path):
    folder = tmp_path / "model"
    versions.publish(staged, folder)
    shutil.rmtree(folder)
    assert versions.publish(staged, folder) == 1


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
