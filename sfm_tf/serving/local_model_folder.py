"""The folder of one served model, on this machine or on a file system mounted on it."""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import IO

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
