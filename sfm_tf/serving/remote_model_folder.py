"""The folder of one served model in an object store (`gs://`, `s3://`, ...), through fsspec.

An object store has no rename and no locks. A version is therefore uploaded to a hidden prefix, and
copied within the store to its number, `saved_model.pb` last: TensorFlow Serving cannot load a
version without that file, keeps the one it serves and tries again. Whatever fails or is killed
during the upload, the long part, shows no server anything.
"""

import contextlib
import dataclasses
import pathlib
import posixpath
import secrets
import time
from collections.abc import Iterator
from typing import Any

from sfm_tf.errors import SfmError

INCOMING_PREFIX = ".incoming-"
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
            if name.startswith(INCOMING_PREFIX) and _age_seconds(name) > ABANDONED_AFTER_SECONDS:
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
    started = incoming.removeprefix(INCOMING_PREFIX).split("-")[0]
    return time.time() - int(started) if started.isdecimal() else 0.0
