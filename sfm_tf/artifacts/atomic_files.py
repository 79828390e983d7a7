"""Files that are either whole or absent, even if the process is killed."""

import json
import os
import pathlib
from typing import Any

from sfm_tf.errors import SfmError


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes `data` to a temporary name beside `path`, syncs it to disk and renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, whole or not at all.

    Raises:
        ValueError: If `value` holds a NaN or an infinity, which are not JSON.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Returns what `write_json` wrote.

    Raises:
        SfmError: If the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SfmError(
            f"Cannot read {path} ({error}); run its stage again with --force."
        ) from error


def sync_folder(folder: pathlib.Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
