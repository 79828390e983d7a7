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

from sfm_tf.artifacts.file_tree import walk
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.errors import SfmError, printable

MOST_MEMBERS = 1_000_000
LARGEST_MEMBER_BYTES = 192 * 2**20
"""As much as the largest image that is accepted takes when it is decoded."""

LONGEST_NAME_BYTES = 255
"""Longest name of a file or folder; that of Linux, which limits folders by itself."""

MANUAL_ARCHIVES: Mapping[str, str] = {"tiny_imagenet": "tiny-imagenet-200.zip"}
"""Archives that TensorFlow Datasets does not download, by dataset."""

_FILE_MANAGER_NAMES = frozenset(
    (
        "#recycle",
        "$recycle.bin",
        "@eadir",
        "@recycle",
        "__macosx",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "system volume information",
        "thumbs.db",
    )
)


def is_passed_over(name: str) -> bool:
    """Tells whether a file or folder of this name is hidden or was left by a file manager."""
    return name.startswith(".") or name.casefold() in _FILE_MANAGER_NAMES


class ZipArchive:
    """The members of a zip file. A context manager that closes it.

    Attributes:
        versions: For each member, by its name with forward slashes, a text that changes with it.
            What `is_passed_over` is left out.
        empty_folders: Names, with a slash at the end, of the folders in which nothing is.
        passed_over: How many files and folders were left out.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Opens the file at `path`; raises `SfmError` if it is no zip file or is damaged."""
        self._path = path
        try:
            self._file = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, RuntimeError, ValueError) as error:
            raise SfmError(
                f"Cannot open {path}: {error}; expected a folder or a zip archive."
            ) from error
        try:
            members = _checked_members(path, self._file)
        except SfmError:
            self._file.close()
            raise
        left_out = {name: _passed_over_part(name) for name in members}
        self.passed_over = len(set(filter(None, left_out.values())))
        kept = {name: member for name, member in members.items() if not left_out[name]}
        filled = {str(parent) for name in kept for parent in pathlib.PurePosixPath(name).parents}
        self._members = {name: member for name, member in kept.items() if not member.is_dir()}
        self.empty_folders = tuple(
            name for name in sorted(kept) if name.endswith("/") and name[:-1] not in filled
        )
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
            raise SfmError(f"{self._path} lacks {printable(name)}; expected the complete archive.")
        try:
            with self._file.open(self._members[name]) as member:
                # No more than the checked size is ever decompressed, whatever the data would
                # grow to; the second read reaches the end, where the checksum is compared.
                data = member.read(self._members[name].file_size)
                member.read(1)
                return data
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise SfmError(
                f"Cannot read {printable(name)} of {self._path}: {error}; "
                "download the archive again."
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
        if any(len(part.encode()) > LONGEST_NAME_BYTES for part in name.parts):
            raise SfmError(
                f"{path} has a member {member.filename[:50]!r}...; expected names of at most "
                f"{LONGEST_NAME_BYTES} bytes."
            )
        if member.file_size > LARGEST_MEMBER_BYTES:
            raise SfmError(
                f"Member {member.filename!r} of {path} has {member.file_size} bytes; "
                f"expected at most {LARGEST_MEMBER_BYTES}."
            )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SfmError(
                f"Member {member.filename!r} of {path} is compressed by method "
                f"{member.compress_type}; expected stored or deflated. Zip the folder again."
            )
        if member.filename in members and not member.is_dir():
            raise SfmError(f"{path} has two members {member.filename!r}; expected one.")
        members[member.filename] = member
    return members


def _passed_over_part(name: str) -> str:
    """Returns the path down to the first part that is passed over; empty where there is none."""
    parts = pathlib.PurePosixPath(name).parts
    places = (place for place, part in enumerate(parts, start=1) if is_passed_over(part))
    return "/".join(parts[: next(places, 0)])


class FolderArchive:
    """The files below a folder, with the interface of `ZipArchive`.

    Attributes:
        versions: As for a zip file, by the path in the folder.
        empty_folders: As for a zip file.
        passed_over: As for a zip file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Lists the files below `path`, through symbolic links.

        Raises:
            SfmError: If a link leads back to a folder that it is in.
        """
        self._path = path
        tree = walk(path, is_passed_over)
        self.versions: Mapping[str, str] = {
            file.relative_to(path).as_posix(): _file_version(file) for file in tree.files
        }
        self.empty_folders = tuple(
            f"{folder.relative_to(path).as_posix()}/" for folder in tree.empty_folders
        )
        self.passed_over = len(tree.passed_over)

    def __enter__(self) -> "FolderArchive":
        """Returns the archive itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Has nothing to close."""

    def read(self, name: str) -> bytes:
        """Returns the contents of file `name`; raises `SfmError` if it is missing or too large."""
        path = self._path / name
        if name not in self.versions:
            raise SfmError(f"{self._path} lacks {printable(name)}; expected the complete folder.")
        if not path.is_file():
            raise SfmError(
                f"Cannot read {printable(str(path))}: it is no file, or a link that leads nowhere; "
                "remove it."
            )
        if path.stat().st_size > LARGEST_MEMBER_BYTES:
            raise SfmError(
                f"File {printable(str(path))} has {path.stat().st_size} bytes; "
                f"expected at most {LARGEST_MEMBER_BYTES}."
            )
        try:
            return path.read_bytes()
        except OSError as error:
            raise SfmError(f"Cannot read {printable(str(path))}: {error.strerror}.") from error


def _file_version(path: pathlib.Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "unreadable"  # A broken link, for one; reported by whoever reads it.
    return f"{status.st_size} {status.st_mtime_ns}"


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
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def raw_versions(config: DataConfig) -> Mapping[str, str]:
    """Returns a text for each raw file of a dataset, or for its archive, as `versions` does.

    Nothing is opened, so it costs no reading. Files that are missing, and those that TensorFlow
    Datasets downloads and verifies, are not among them.

    Raises:
        SfmError: As `FolderArchive`.
    """
    path = source_path(config)
    if path is not None and path.is_dir():
        return FolderArchive(path).versions
    return {".": _file_version(path)} if path is not None and path.is_file() else {}


def source_path(config: DataConfig) -> pathlib.Path | None:
    """Returns where the raw files of a dataset are, or should be; None where it needs none.

    That is `source`, or else the archive among those that a user puts into the folder of
    TensorFlow Datasets.
    """
    if config.source:
        return pathlib.Path(os.path.expanduser(config.source))
    if config.dataset not in MANUAL_ARCHIVES:
        return None
    data_dir = config.data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    folder = pathlib.Path(os.path.expanduser(data_dir))
    return folder / "downloads" / "manual" / MANUAL_ARCHIVES[config.dataset]
