"""The files below a folder, found by one walk for those who read them and those who digest them."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

from sfm_tf.errors import SfmError


@dataclasses.dataclass(frozen=True)
class FileTree:
    """What is below a folder, in the order of the paths.

    Attributes:
        files: All that is no folder, also where a symbolic link leads to it or to its folder, and
            links that lead nowhere.
        empty_folders: Folders with nothing in them but what was passed over.
        passed_over: Files and folders that were not looked at.
    """

    files: tuple[pathlib.Path, ...]
    empty_folders: tuple[pathlib.Path, ...]
    passed_over: tuple[pathlib.Path, ...]


def walk(
    folder: pathlib.Path, is_passed_over: Callable[[str], bool] = lambda name: False
) -> FileTree:
    """Finds the files below `folder`; follows symbolic links, also those that lead out of it.

    Args:
        folder: The folder.
        is_passed_over: Tells of the name of a file or folder whether to leave it out.

    Raises:
        SfmError: If a link leads back to a folder that it is in.
        OSError: If a folder cannot be read.
    """
    files, empty_folders, passed_over = [], [], []
    waiting: list[tuple[pathlib.Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        parent, ancestors = waiting.pop()
        status = parent.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            raise SfmError(f"Link {parent} leads back to a folder that it is in; remove this link.")
        with os.scandir(parent) as entries:
            found = list(entries)
        left_out = {entry.name for entry in found if is_passed_over(entry.name)}
        passed_over += [parent / name for name in left_out]
        looked_at = [entry for entry in found if entry.name not in left_out]
        if not looked_at and parent != folder:
            empty_folders.append(parent)
        for entry in looked_at:
            if entry.is_dir():
                waiting.append((parent / entry.name, ancestors | {identity}))
            else:
                files.append(parent / entry.name)
    return FileTree(*(tuple(sorted(paths)) for paths in (files, empty_folders, passed_over)))
