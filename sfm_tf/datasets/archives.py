"""Files of a zip archive or a folder, read one at a time and never extracted.

A zip archive is of unknown origin: its names, the number of its members and their sizes are
checked before anything is read.
"""

import hashlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping

from sfm_tf.errors import SfmError

MOST_MEMBERS = 1_000_000
LARGEST_MEMBER_BYTES = 16 * 2**20


class ZipArchive:
    """The members of a zip file. A context manager that closes it.

    Attributes:
        versions: For each member, by its name with forward slashes, a text that changes with it.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Opens the file at `path`; raises `SfmError` if it is no zip file or is damaged."""
        self._path = path
        try:
            self._file = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise SfmError(f"Cannot open {path}: {error}; expected a zip archive.") from error
        try:
            self._members = _checked_members(path, self._file)
        except SfmError:
            self._file.close()
            raise
        self.versions: Mapping[str, str] = {
            name: f"{member.file_size} {member.CRC}" for name, member in self._members.items()
        }

    def __enter__(self) -> "ZipArchive":
        """Returns the archive itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the file."""
        self._file.close()

    def read(self, name: str) -> bytes:
        """Returns the contents of member `name`; raises `SfmError` if it cannot be read whole."""
        if name not in self._members:
            raise SfmError(f"{self._path} lacks {name}; expected the complete archive.")
        try:
            with self._file.open(self._members[name]) as member:
                # No more than the checked size is ever decompressed, whatever the data would
                # grow to; the second read reaches the end, where the checksum is compared.
                data = member.read(self._members[name].file_size)
                member.read(1)
                return data
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise SfmError(
                f"Cannot read {name} of {self._path}: {error}; download the archive again."
            ) from error


def _checked_members(path: pathlib.Path, file: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    if len(file.infolist()) > MOST_MEMBERS:
        raise SfmError(
            f"{path} has {len(file.infolist())} members; expected at most {MOST_MEMBERS}."
        )
    members: dict[str, zipfile.ZipInfo] = {}
    for member in file.infolist():
        name = pathlib.PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
            raise SfmError(f"{path} has a member {member.filename!r}; expected relative names.")
        if member.file_size > LARGEST_MEMBER_BYTES:
            raise SfmError(
                f"Member {member.filename} of {path} has {member.file_size} bytes; "
                f"expected at most {LARGEST_MEMBER_BYTES}."
            )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SfmError(
                f"Member {member.filename} of {path} is compressed by method "
                f"{member.compress_type}; expected stored or deflated. Zip the folder again."
            )
        if member.filename in members:
            raise SfmError(f"{path} has two members {member.filename!r}; expected one.")
        if not member.is_dir():
            members[member.filename] = member
    return members


class FolderArchive:
    """The files below a folder, with the interface of `ZipArchive`.

    Attributes:
        versions: For each file, by its path in the folder with forward slashes, a text that
            changes with it.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Lists the files below `path`."""
        self._path = path
        files = (pathlib.Path(parent, name) for parent, _, names in os.walk(path) for name in names)
        self.versions: Mapping[str, str] = {
            file.relative_to(path).as_posix(): f"{file.stat().st_size} {file.stat().st_mtime_ns}"
            for file in files
        }

    def __enter__(self) -> "FolderArchive":
        """Returns the archive itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Has nothing to close."""

    def read(self, name: str) -> bytes:
        """Returns the contents of file `name`; raises `SfmError` if it is missing or too large."""
        path = self._path / name
        if name not in self.versions:
            raise SfmError(f"{self._path} lacks {name}; expected the complete folder.")
        if path.stat().st_size > LARGEST_MEMBER_BYTES:
            raise SfmError(
                f"File {path} has {path.stat().st_size} bytes; "
                f"expected at most {LARGEST_MEMBER_BYTES}."
            )
        return path.read_bytes()


Archive = ZipArchive | FolderArchive


def open_archive(path: pathlib.Path) -> Archive:
    """Opens a folder, or a file as a zip archive.

    Raises:
        SfmError: If there is neither, or the archive is not sound.
    """
    if path.is_dir():
        return FolderArchive(path)
    if not path.is_file():
        raise SfmError(f"No file or folder {path}.")
    return ZipArchive(path)


def fingerprint(archive: Archive) -> str:
    """Returns 16 hexadecimal digits that differ between archives of different contents."""
    lines = sorted(f"{name} {version}\n" for name, version in archive.versions.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
