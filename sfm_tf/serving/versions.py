"""Versions of a served model: integers that only grow, each whole from the moment it is visible.

    <serving_dir>/<model_name>/<version>/              a SavedModel
    <serving_dir>/<model_name>/.pushes/<version>.json  when it was pushed; stays when it is deleted

TensorFlow Serving loads the highest version. A number that was given once is never given again,
even if its version was deleted: a client, a cache or a log that names a version means one model.
Going back to an older version therefore pushes a copy of it under a new number.

The folder is local or in an object store; fsspec reaches both. On a local disk a version appears by
a rename. An object store has none: there the file that makes a version loadable is copied last.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import posixpath
import re
import secrets
import time
from collections.abc import Iterator
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sfm_tf.artifacts.atomic_files import sync_folder
from sfm_tf.errors import SfmError, in_one_line

SAVED_MODEL_FILE = "saved_model.pb"
"""The file that makes a version loadable."""

MANIFEST_FILE = "assets.extra/manifest.json"
MODEL_CARD_FILE = "assets.extra/MODEL_CARD.md"
"""What a version may tell of itself: where its model comes from, and its model card."""

PATIENCE_SECONDS = 600.0
"""How long to wait for another process that is changing a local folder."""

ABANDONED_AFTER_SECONDS = 24 * 3600
"""Age from which an upload to an object store is taken to be that of a process that was killed."""

_LOCK_FILE = ".lock"
_PUSHES = ".pushes"
_INCOMING, _OUTGOING = ".incoming-", ".outgoing-"
"""Start the names of what is being copied or deleted; no server takes them for a version."""

_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9]+")

Address = str | os.PathLike[str]


def is_remote(address: Address) -> bool:
    """Whether an address is that of an object store rather than a path."""
    return "://" in os.fspath(address)


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """The folder of a model's versions.

    Attributes:
        filesystem: Where it is.
        root: The folder, as the file system names it; it need not exist until something is written.
    """

    filesystem: fsspec.AbstractFileSystem
    root: str

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return isinstance(self.filesystem, LocalFileSystem)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other processes from changing a local folder, and clears what killed ones left.

        The lock ends with the process that holds it, however that ends. Whatever bears a hidden
        name while the lock is held is therefore nobody's work. An object store knows no lock:
        there, `create` decides, and only uploads that were abandoned are cleared.

        Raises:
            SfmError: If another process still holds the lock after `PATIENCE_SECONDS`.
        """
        with contextlib.ExitStack() as stack:
            if self.is_local:
                os.makedirs(self.root, exist_ok=True)
                _wait_for(stack.enter_context(open(self.path(_LOCK_FILE), "w")), self.root)
            for name in self.names():
                if name.startswith((_INCOMING, _OUTGOING)) and (
                    self.is_local or _age_seconds(name) > ABANDONED_AFTER_SECONDS
                ):
                    self._remove(name)
            yield

    def names(self, folder: str = "") -> list[str]:
        """Returns the names in a sub-folder, none if it is not there."""
        self.filesystem.invalidate_cache()
        try:
            entries = self.filesystem.ls(self.path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [posixpath.basename(entry.rstrip("/")) for entry in entries]

    def files(self, folder: str) -> dict[str, int]:
        """Returns the size in bytes of every file below a sub-folder, keyed by path in it."""
        self.filesystem.invalidate_cache()
        top = self.path(folder)
        found = self.filesystem.find(top, detail=True)
        return {posixpath.relpath(path, top): int(entry["size"]) for path, entry in found.items()}

    def read(self, path: str) -> bytes | None:
        """Returns the contents of a file, None if it does not exist."""
        try:
            return self.filesystem.cat_file(self.path(path))
        except FileNotFoundError:
            return None

    def create(self, path: str, data: bytes) -> bool:
        """Writes a file unless it exists; tells whether it did.

        Where two processes cannot lock each other out, the store itself decides between them (a
        conditional write in gcsfs and s3fs), so no two ever push under one number. fsspec's other
        file systems know no such write: there, do not push twice within the same moment.
        """
        if self.filesystem.exists(self.path(path)):
            return False
        try:
            self.filesystem.pipe_file(self.path(path), data, mode="create")
        except FileExistsError:
            return False
        if self.is_local:
            _sync(pathlib.Path(self.path(path)).parent)
        return True

    def copy(self, source: pathlib.Path | int) -> str:
        """Copies a folder of this machine, or a version; returns the copy's hidden name."""
        incoming = _hidden(_INCOMING)
        with self.deleted_on_failure(incoming):
            if isinstance(source, int):
                self._copy(str(source), incoming)
            else:
                self.filesystem.put(f"{source}/", self.path(incoming) + "/", recursive=True)
        return incoming

    def reveal(self, incoming: str, version: str) -> None:
        """Turns a hidden copy into a version."""
        if self.is_local:
            _sync(pathlib.Path(self.path(incoming)))
            os.rename(self.path(incoming), self.path(version))
            sync_folder(pathlib.Path(self.root))
            return
        with self.deleted_on_failure(version):
            self._copy(incoming, version)
        self._remove(incoming)

    def delete(self, name: str) -> None:
        """Deletes a version or a hidden copy, if it is there; a server never sees a part of it."""
        if self.is_local and os.path.exists(self.path(name)):
            outgoing = _hidden(_OUTGOING)
            os.rename(self.path(name), self.path(outgoing))
            name = outgoing
        elif SAVED_MODEL_FILE in self.names(name):
            self.filesystem.rm_file(self.path(name, SAVED_MODEL_FILE))
        self._remove(name)

    @contextlib.contextmanager
    def deleted_on_failure(self, name: str) -> Iterator[None]:
        """Deletes a version or a hidden copy if an exception ends the context."""
        try:
            yield
        except BaseException:
            self.delete(name)
            raise

    def path(self, *parts: str) -> str:
        """Returns the path of something in the folder, as the file system names it."""
        return posixpath.join(self.root, *parts).rstrip("/")

    def _remove(self, name: str) -> None:
        self.filesystem.invalidate_cache()
        if self.filesystem.exists(self.path(name)):
            self.filesystem.rm(self.path(name), recursive=True)

    def _copy(self, source: str, target: str) -> None:
        for path in sorted(self.files(source), key=lambda path: (path == SAVED_MODEL_FILE, path)):
            self.filesystem.cp_file(self.path(source, path), self.path(target, path))


def open_folder(address: Address) -> ModelFolder:
    """Returns the folder at a path, or at an address such as `gs://bucket/models/sfm_defended`.

    Credentials are those that fsspec's packages (`gcsfs`, `s3fs`, ...) find by themselves.

    Raises:
        SfmError: If the package that fsspec needs for this kind of address is not installed.
    """
    try:
        filesystem, root = fsspec.url_to_fs(os.fspath(address))
    except (ImportError, ValueError) as error:
        raise SfmError(
            f"Cannot reach {address}: {error}; install fsspec's package for this kind of address "
            "(gs: gcsfs, s3: s3fs), or give a local folder."
        ) from error
    if isinstance(filesystem, LocalFileSystem):
        filesystem = LocalFileSystem(auto_mkdir=True)
    return ModelFolder(filesystem, root)


def _wait_for(lock: IO[str], folder: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise SfmError(
                    f"Another process has been changing {folder} for over {PATIENCE_SECONDS:g} "
                    "seconds; end it and try again."
                ) from error
        time.sleep(0.02)


def _sync(folder: pathlib.Path) -> None:
    """Makes a local folder with all that is in it survive a power cut."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _hidden(prefix: str) -> str:
    return f"{prefix}{int(time.time())}-{secrets.token_hex(4)}"


def _age_seconds(hidden: str) -> float:
    started = hidden.split("-")[1]
    return time.time() - int(started) if started.isdecimal() else 0.0


@dataclasses.dataclass(frozen=True)
class ModelVersion:
    """What is known of a version.

    Attributes:
        number: Its number, also the name of its folder.
        size_bytes: Size of its files.
        complete: Whether a server can load it; a push to an object store may have been cut short.
        pushed_at: When it got its number, in UTC and ISO 8601; None if no push did that.
        copy_of: The version that a rollback copied; None for a model of its own.
        blessed: The verdict in its manifest; None where it has none.
        has_model_card: Whether a model card travels with it.
    """

    number: int
    size_bytes: int
    complete: bool
    pushed_at: str | None
    copy_of: int | None
    blessed: bool | None
    has_model_card: bool


def model_folder(serving_dir: Address, model_name: str) -> str:
    """Returns the address of the folder that holds the versions of a model.

    Raises:
        SfmError: If the name is not usable as that of a folder.
    """
    if not _MODEL_NAME.fullmatch(model_name):
        raise SfmError(
            f"Invalid model_name {model_name!r}; expected letters, digits, '.', '_' and '-', "
            "starting with a letter, a digit or '_'."
        )
    return f"{os.fspath(serving_dir).rstrip('/')}/{model_name}"


def publish(staged: pathlib.Path, folder: Address) -> int:
    """Copies a SavedModel to where a server looks, as the next version of a model.

    The copy gets its number when all of it is there; until then a server that polls the folder
    ignores it. Whatever stops the push leaves the earlier versions as they were, and the next push
    clears what it left. Pushes to a local folder wait for each other.

    Args:
        staged: The SavedModel to serve; it stays where it is.
        folder: Folder of the model's versions, or an address such as `gs://bucket/models/name`.

    Returns:
        The number of the new version.

    Raises:
        SfmError: If `staged` is no SavedModel, or the folder cannot be reached or written.
    """
    if not (staged / SAVED_MODEL_FILE).is_file():
        raise SfmError(f"Cannot push {staged}: it has no {SAVED_MODEL_FILE}; export a model first.")
    with _changing(folder, "push to") as target:
        return _release(target, staged, copy_of=None)


def rollback(folder: Address, version: int) -> int:
    """Makes an older version the one that a server loads, by pushing a copy of it.

    Args:
        folder: Folder of the model's versions.
        version: The version to go back to; it stays as well.

    Returns:
        The number under which it is served: a new one, unless the highest is of the same model.

    Raises:
        SfmError: If there is no such version, or the folder cannot be reached or written.
    """
    _require_versions(folder)
    with _changing(folder, "roll back in") as target:
        present = _complete_numbers(target)
        if version not in present:
            listed = ", ".join(map(str, present))
            raise SfmError(f"No version {version} in {folder}; expected one of {listed}.")
        latest = present[-1]
        if _original(target, version) == _original(target, latest):
            return latest
        return _release(target, version, copy_of=version)


def keep_newest(folder: Address, count: int) -> list[int]:
    """Deletes all but the newest versions of a model.

    A version above the newest complete one may be a push to an object store that is under way, and
    is left alone. Versions below it that were cut short are deleted.

    Args:
        folder: Folder of the model's versions.
        count: How many to keep, at least 1.

    Returns:
        The numbers of the deleted versions, which no later push will get.

    Raises:
        SfmError: If `count` is less than 1, there is no version that a server can load, or the
            folder cannot be reached or written.
    """
    if count < 1:
        raise SfmError(f"Cannot keep {count} versions; expected at least 1.")
    _require_versions(folder)
    with _changing(folder, "delete versions in") as target:
        kept = _complete_numbers(target)[-count:]
        older = [number for number in _numbers(target) if number < kept[-1]]
        deleted = [number for number in older if number not in kept]
        for number in deleted:
            target.delete(str(number))
        return deleted


def list_versions(folder: Address) -> list[ModelVersion]:
    """Returns what is known of each version of a model, the newest last.

    Raises:
        SfmError: If the folder cannot be reached.
    """
    with _described(folder, "list"):
        target = open_folder(folder)
        return [_describe(target, number) for number in _numbers(target)]


def find_models(serving_dir: Address) -> list[str]:
    """Returns the names of the models, with at least one version, in a folder of served models."""
    with _described(serving_dir, "list"):
        names = sorted(filter(_MODEL_NAME.fullmatch, open_folder(serving_dir).names()))
        return [name for name in names if _numbers(open_folder(model_folder(serving_dir, name)))]


@dataclasses.dataclass(frozen=True)
class ServedVersion:
    """The version that a server loads: the highest that is complete.

    Attributes:
        number: Its number.
        original: The version whose model it is: itself, or the one that a rollback went back to.
    """

    number: int
    original: int


def served_version(folder: Address) -> ServedVersion | None:
    """Returns the version that a server loads, None if there is none.

    Raises:
        SfmError: If the folder cannot be reached.
    """
    with _described(folder, "list"):
        target = open_folder(folder)
        numbers = _complete_numbers(target)
        return ServedVersion(numbers[-1], _original(target, numbers[-1])) if numbers else None


@contextlib.contextmanager
def _changing(folder: Address, verb: str) -> Iterator[ModelFolder]:
    with _described(folder, verb):
        target = open_folder(folder)
        with target.exclusive():
            yield target


@contextlib.contextmanager
def _described(folder: Address, verb: str) -> Iterator[None]:
    try:
        yield
    except SfmError:
        raise
    except Exception as error:
        # The packages for object stores raise their own kinds for a bucket or right that is absent.
        if not isinstance(error, OSError) and open_folder(folder).is_local:
            raise
        words = getattr(error, "strerror", None) or in_one_line(error)
        raise SfmError(
            f"Cannot {verb} {folder}: {words}; check that the folder can be written and has room, "
            "then try again."
        ) from error


def _require_versions(folder: Address) -> None:
    with _described(folder, "read"):
        if not _complete_numbers(open_folder(folder)):
            raise SfmError(f"No model versions in {folder}; export a model or name another folder.")


def _numbers(target: ModelFolder) -> list[int]:
    return sorted(int(name) for name in target.names() if _VERSION.fullmatch(name))


def _complete_numbers(target: ModelFolder) -> list[int]:
    numbers = _numbers(target)
    return [number for number in numbers if SAVED_MODEL_FILE in target.names(str(number))]


def _next(target: ModelFolder) -> int:
    records = [name.removesuffix(".json") for name in target.names(_PUSHES)]
    given = [int(name) for name in records if _VERSION.fullmatch(name)]
    return 1 + max([0, *_numbers(target), *given])


def _release(target: ModelFolder, source: pathlib.Path | int, copy_of: int | None) -> int:
    incoming = target.copy(source)
    with target.deleted_on_failure(incoming):
        number = _claim(target, copy_of)
        target.reveal(incoming, str(number))
    return number


def _claim(target: ModelFolder, copy_of: int | None) -> int:
    """Takes a number, for ever: the record of a push is written once and not deleted."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    record = json.dumps({"pushed_at": now, "copy_of": copy_of}) + "\n"
    number = _next(target)
    while not target.create(_record(number), record.encode("utf-8")):
        number += 1
    return number


def _record(number: int) -> str:
    return f"{_PUSHES}/{number}.json"


def _original(target: ModelFolder, number: int) -> int:
    """Returns the version that a rollback, or one after another, made this copy of."""
    source = _facts(target, _record(number)).get("copy_of")
    # A copy has a higher number than its source; a record that says otherwise is not ours.
    if not isinstance(source, int) or not 0 < source < number:
        return number
    return _original(target, source)


def _facts(target: ModelFolder, path: str) -> dict[str, Any]:
    """Reads a JSON object; a record that was cut short, or is not ours, tells nothing."""
    try:
        facts = json.loads(target.read(path) or b"{}")
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _describe(target: ModelFolder, number: int) -> ModelVersion:
    files = target.files(str(number))
    record = _facts(target, _record(number))
    return ModelVersion(
        number=number,
        size_bytes=sum(files.values()),
        complete=SAVED_MODEL_FILE in files,
        pushed_at=record.get("pushed_at"),
        copy_of=record.get("copy_of"),
        blessed=_facts(target, f"{number}/{MANIFEST_FILE}").get("blessed"),
        has_model_card=MODEL_CARD_FILE in files,
    )
