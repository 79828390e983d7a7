"""Versions of a served model: integers that only grow, each whole from the moment it is visible.

    <serving_dir>/<model_name>/<version>/          a SavedModel
    <serving_dir>/<model_name>/.pushes/<version>.json  when it was pushed; stays when it is deleted

TensorFlow Serving loads the highest version. A number that was given once is never given again,
even if its version was deleted: a client, a cache or a log that names a version means one model.
Going back to an older version therefore pushes a copy of it under a new number.
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
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from sfm_tf.artifacts.atomic_files import sync_folder
from sfm_tf.errors import SfmError

INCOMING_PREFIX = ".incoming-"
"""Starts the names of copies that are being made; no server takes them for a version."""

OUTGOING_PREFIX = ".outgoing-"
"""Starts the names of versions that are being deleted."""

LOCK_FILE = ".lock"


@dataclasses.dataclass(frozen=True)
class LocalModelFolder:
    """Versions appear by a rename and disappear by one, so a server sees them whole or not at all.

    Attributes:
        root: The folder; it need not exist until something is written.
        patience_seconds: How long to wait for another process that is changing the folder.
    """

    root: pathlib.Path
    patience_seconds: float = 600.0

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other processes from changing the folder, and clears what killed ones left.

        The lock ends with the process that holds it, however that ends. Whatever bears the name of
        an unfinished copy while the lock is held therefore has nobody working on it.

        Raises:
            SfmError: If another process still holds it after `patience_seconds`.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / LOCK_FILE, "w", encoding="utf-8") as lock:
            self._wait_for(lock)
            for name in self.names():
                if name.startswith((INCOMING_PREFIX, OUTGOING_PREFIX)):
                    shutil.rmtree(self.root / name)
            yield

    def _wait_for(self, lock: IO[str]) -> None:
        deadline = time.monotonic() + self.patience_seconds
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise SfmError(
                        f"Another process has been changing {self.root} for over "
                        f"{self.patience_seconds:g} seconds; end it and try again."
                    ) from error
            time.sleep(0.02)

    def names(self, folder: str = "") -> list[str]:
        """Returns the names in a sub-folder, none if it is no folder."""
        try:
            return os.listdir(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, folder: str) -> dict[str, int]:
        """Returns the size in bytes of every file below a sub-folder, keyed by path in it."""
        top = self.root / folder
        return {
            path.relative_to(top).as_posix(): path.stat().st_size
            for path in top.rglob("*")
            if path.is_file()
        }

    def read(self, path: str) -> bytes | None:
        """Returns the contents of a file, None if it does not exist."""
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            return None

    def create(self, path: str, data: bytes) -> bool:
        """Writes a file unless it exists; tells whether it did."""
        target = self.root / path
        target.parent.mkdir(exist_ok=True)
        try:
            with open(target, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        sync_folder(target.parent)
        return True

    def upload(self, source: pathlib.Path) -> str:
        """Copies a folder to the disk of this one; returns the name of the unfinished version."""
        incoming = pathlib.Path(tempfile.mkdtemp(prefix=INCOMING_PREFIX, dir=self.root))
        try:
            copy = incoming / "saved_model"
            shutil.copytree(source, copy)
            _sync_tree(copy)
        except BaseException:
            shutil.rmtree(incoming)
            raise
        return incoming.name

    def duplicate(self, version: str) -> str:
        """Copies a version; returns the name of the unfinished one."""
        return self.upload(self.root / version)

    def reveal(self, incoming: str, version: str) -> None:
        """Turns an unfinished version into a version, in one step."""
        os.rename(self.root / incoming / "saved_model", self.root / version)
        sync_folder(self.root)

    def delete(self, name: str) -> None:
        """Deletes a version or an unfinished one; its name goes first, in one step."""
        outgoing = tempfile.mkdtemp(prefix=OUTGOING_PREFIX, dir=self.root)
        os.rename(self.root / name, os.path.join(outgoing, name))
        shutil.rmtree(outgoing)


def _sync_tree(folder: pathlib.Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


INCOMING_PREFIX_remote_model_folder = ".incoming-"
"""Starts the prefixes of uploads; no server takes them for a version."""

ABANDONED_AFTER_SECONDS = 24 * 3600
"""Age from which an upload is taken to be that of a process that was killed."""

LAST_FILE = "saved_model.pb"
"""The file that makes a version loadable."""


@dataclasses.dataclass(frozen=True)
class RemoteModelFolder:
    """A prefix of an object store.

    Attributes:
        filesystem: fsspec's `AbstractFileSystem`.
        root: The prefix, as the file system names it.
    """

    filesystem: Any
    root: str

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Clears uploads that were abandoned; cannot keep other processes out, see `create`."""
        for name in self.names():
            if (
                name.startswith(INCOMING_PREFIX_remote_model_folder)
                and _age_seconds(name) > ABANDONED_AFTER_SECONDS
            ):
                self.delete(name)
        yield

    def names(self, folder: str = "") -> list[str]:
        """Returns the names directly below a prefix, none if nothing is there."""
        self.filesystem.invalidate_cache()
        try:
            entries = self.filesystem.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return [posixpath.basename(entry.rstrip("/")) for entry in entries]

    def files(self, folder: str) -> dict[str, int]:
        """Returns the size in bytes of every object below a prefix, keyed by path in it."""
        self.filesystem.invalidate_cache()
        top = self._path(folder)
        found = self.filesystem.find(top, detail=True)
        return {posixpath.relpath(path, top): int(entry["size"]) for path, entry in found.items()}

    def read(self, path: str) -> bytes | None:
        """Returns the contents of an object, None if it does not exist."""
        try:
            return self.filesystem.cat_file(self._path(path))
        except FileNotFoundError:
            return None

    def create(self, path: str, data: bytes) -> bool:
        """Writes an object unless it exists; tells whether it did.

        The store itself decides between two processes (a conditional write in gcsfs and s3fs), so
        that no two ever push under one number. fsspec's other file systems know no such write:
        there, two pushes within the same moment are the caller's to prevent.
        """
        if self.filesystem.exists(self._path(path)):
            return False
        try:
            self.filesystem.pipe_file(self._path(path), data, mode="create")
        except FileExistsError:
            return False
        return True

    def upload(self, source: pathlib.Path) -> str:
        """Copies a local folder to a hidden prefix; returns the name of the unfinished version."""
        incoming = _new_incoming()
        with self._deleted_on_failure(incoming):
            for path in sorted(each for each in source.rglob("*") if each.is_file()):
                target = self._path(incoming, path.relative_to(source).as_posix())
                self.filesystem.put_file(str(path), target)
        return incoming

    def duplicate(self, version: str) -> str:
        """Copies a version within the store; returns the name of the unfinished one."""
        incoming = _new_incoming()
        with self._deleted_on_failure(incoming):
            self._copy(version, incoming)
        return incoming

    def reveal(self, incoming: str, version: str) -> None:
        """Copies an unfinished version to its number; only the last object makes it loadable."""
        with self._deleted_on_failure(version):
            self._copy(incoming, version)

    def delete(self, name: str) -> None:
        """Deletes a version or an unfinished one; what makes it loadable goes first."""
        paths = sorted(self.files(name), key=lambda path: path != LAST_FILE)
        for path in paths:
            self.filesystem.rm_file(self._path(name, path))
        if self.filesystem.exists(self._path(name)):  # Some file systems keep empty folders.
            self.filesystem.rm(self._path(name), recursive=True)

    def _copy(self, source: str, target: str) -> None:
        for path in sorted(self.files(source), key=lambda path: (path == LAST_FILE, path)):
            self.filesystem.cp_file(self._path(source, path), self._path(target, path))

    @contextlib.contextmanager
    def _deleted_on_failure(self, name: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.delete(name)
            raise

    def _path(self, *parts: str) -> str:
        return posixpath.join(self.root, *parts).rstrip("/")


def open_remote(address: str) -> RemoteModelFolder:
    """Returns the folder at an address such as `gs://bucket/models/sfm_defended`.

    Credentials are those that fsspec's packages (`gcsfs`, `s3fs`, ...) find by themselves.

    Raises:
        SfmError: If fsspec, or the package it needs for this kind of address, is not installed.
    """
    try:
        import fsspec

        filesystem, root = fsspec.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise SfmError(
            f"Cannot reach {address}: {error}; install fsspec and its package for this kind of "
            "address (gs: gcsfs, s3: s3fs), or give a local folder."
        ) from error
    return RemoteModelFolder(filesystem, root)


def _new_incoming() -> str:
    return f"{INCOMING_PREFIX}{int(time.time())}-{secrets.token_hex(4)}"


def _age_seconds(incoming: str) -> float:
    started = incoming.removeprefix(INCOMING_PREFIX_remote_model_folder).split("-")[0]
    return time.time() - int(started) if started.isdecimal() else 0.0


SAVED_MODEL_FILE = "saved_model.pb"
MANIFEST_FILE = "assets.extra/manifest.json"
MODEL_CARD_FILE = "assets.extra/MODEL_CARD.md"
"""What a version may tell of itself: where its model comes from, and its model card."""

_PUSHES = ".pushes"
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9]+")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")

ModelFolder = LocalModelFolder | RemoteModelFolder
Address = str | os.PathLike[str]


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
        return _release(target, lambda: target.upload(staged), copy_of=None)


def rollback(folder: Address, version: int) -> int:
    """Makes an older version the one that a server loads, by pushing a copy of it.

    Args:
        folder: Folder of the model's versions.
        version: The version to go back to; it stays as well.

    Returns:
        The number under which it is served: a new one, unless the highest is it or a copy of it.

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
        if version in (latest, _copy_of(target, latest)):
            return latest
        return _release(target, lambda: target.duplicate(str(version)), copy_of=version)


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
        target = _open(folder)
        return [_describe(target, number) for number in _numbers(target)]


def find_models(serving_dir: Address) -> list[str]:
    """Returns the names of the models, with at least one version, in a folder of served models."""
    with _described(serving_dir, "list"):
        names = sorted(filter(_MODEL_NAME.fullmatch, _open(serving_dir).names()))
        return [name for name in names if _numbers(_open(model_folder(serving_dir, name)))]


def latest_version(folder: Address) -> int | None:
    """Returns the highest version, which is the one that a server loads; None if there is none."""
    return max(_numbers(_open(folder)), default=None)


def next_version(folder: Address) -> int:
    """Returns the number that the next push will get: 1, or the one after the largest ever given.

    Args:
        folder: Folder whose sub-folders with a number for a name are versions; it may not exist.
    """
    return _next(_open(folder))


def _open(folder: Address) -> ModelFolder:
    address = os.fspath(folder)
    scheme = _SCHEME.match(address)
    if scheme is None:
        return LocalModelFolder(pathlib.Path(address))
    if scheme[1] == "file":
        return LocalModelFolder(pathlib.Path(address[scheme.end() :]))
    return open_remote(address)


@contextlib.contextmanager
def _changing(folder: Address, verb: str) -> Iterator[ModelFolder]:
    with _described(folder, verb):
        target = _open(folder)
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
        if isinstance(_open(folder), LocalModelFolder) and not isinstance(error, OSError):
            raise
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise SfmError(
            f"Cannot {verb} {folder}: {reason}; check that the folder can be written and has room, "
            "then try again."
        ) from error


def _require_versions(folder: Address) -> None:
    with _described(folder, "read"):
        if not _complete_numbers(_open(folder)):
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


def _release(target: ModelFolder, copy: Callable[[], str], copy_of: int | None) -> int:
    incoming = copy()
    try:
        number = _claim(target, copy_of)
        target.reveal(incoming, str(number))
    finally:
        target.delete(incoming)
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


def _copy_of(target: ModelFolder, number: int) -> int | None:
    return _facts(target, _record(number)).get("copy_of")


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
