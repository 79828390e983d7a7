"""Versions of a served model: integers that grow, each complete from the moment it is visible."""

import os
import pathlib
import re
import shutil
import tempfile

from sfm_tf.artifacts.atomic_files import sync_folder
from sfm_tf.errors import SfmError

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9]+")


def next_version(model_folder: pathlib.Path) -> int:
    """Returns the version after the largest one in a folder, 1 if it has none or does not exist.

    Args:
        model_folder: Folder whose sub-folders with a number for a name are versions.
    """
    if not model_folder.is_dir():
        return 1
    names = [entry.name for entry in model_folder.iterdir()]
    return 1 + max((int(name) for name in names if _VERSION.fullmatch(name)), default=0)


def push(staged: pathlib.Path, serving_dir: pathlib.Path, model_name: str) -> pathlib.Path:
    """Copies a SavedModel to where a server looks, as the next version of a model.

    The copy is made under a name that is no version, so a server that polls the folder ignores it,
    and renamed when all of it is on the disk. Whatever stops the push leaves the earlier versions
    as they were.

    Args:
        staged: The SavedModel to serve; it stays where it is.
        serving_dir: Folder of served models; made if it does not exist.
        model_name: Name under which the server finds the model.

    Returns:
        The folder of the new version, `<serving_dir>/<model_name>/<version>`.

    Raises:
        SfmError: If the name is not usable as that of a folder, or the folder cannot be written.
    """
    if not _MODEL_NAME.fullmatch(model_name):
        raise SfmError(
            f"Invalid model_name {model_name!r}; expected letters, digits, '.', '_' and '-', "
            "starting with a letter or digit."
        )
    try:
        return _push(staged, serving_dir / model_name)
    except OSError as error:
        raise SfmError(
            f"Cannot push to {serving_dir / model_name}: {error.strerror or error}; check that "
            "the folder can be written and has room, then export again."
        ) from error


def _push(staged: pathlib.Path, model_folder: pathlib.Path) -> pathlib.Path:
    model_folder.mkdir(parents=True, exist_ok=True)
    incoming = pathlib.Path(tempfile.mkdtemp(prefix=".incoming-", dir=model_folder))
    try:
        copy = incoming / "saved_model"
        shutil.copytree(staged, copy)
        _sync_tree(copy)
        version_folder = model_folder / str(next_version(model_folder))
        # Fails, rather than replaces, if another export has taken the version in the meantime.
        os.rename(copy, version_folder)
        sync_folder(model_folder)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return version_folder


def _sync_tree(folder: pathlib.Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
