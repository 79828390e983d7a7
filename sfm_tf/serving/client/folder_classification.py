"""Classifies a folder of images with a served model, a row per file."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.answers import CLASSIFIED, Answer
from sfm_tf.serving.client.image_batches import (
    UnsendableFileError,
    batches,
    check_batch_size,
    read_image_file,
)
from sfm_tf.serving.client.model_client import ModelClient

SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class FileRow:
    """How one file was classified.

    Attributes:
        file: Path below the folder, with slashes; bytes that are no UTF-8 are written as `\\xff`.
        status: "classified", or why not.
        class_id: Most probable class; None if not classified.
        probabilities: Of each class; None if not classified.
    """

    file: str
    status: str
    class_id: int | None = None
    probabilities: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class _File:
    path: pathlib.Path
    content: bytes | None
    problem: str = ""


def find_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the image files in a folder and the folders in it, sorted by path.

    Args:
        folder: Where to look. Hidden files and folders, links to folders, and files without one of
            `SUFFIXES` are left out.

    Raises:
        SfmError: If the folder cannot be read or has no such file.
    """

    def fail(error: OSError) -> None:
        raise SfmError(f"Cannot read {error.filename!r}: {error.strerror}.") from error

    found: list[pathlib.Path] = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (name for name in files if not name.startswith("."))
        found += [pathlib.Path(parent, name) for name in visible if name.lower().endswith(SUFFIXES)]
    if not found:
        raise SfmError(f"No image in {str(folder)!r}; expected {', '.join(SUFFIXES)} files.")
    return sorted(found)


def classify_folder(
    client: ModelClient,
    folder: pathlib.Path,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[FileRow]:
    """Classifies every image file in a folder and the folders in it.

    No more files than one request holds, and one, are in memory at a time.

    Args:
        client: Of the model.
        folder: Where `find_images` looks.
        batch_size: Most files read at a time; the client sends at most its own `batch_size`.
        progress: Told after each batch how many files are done, of how many.

    Returns:
        A row per file, sorted by path. A file that cannot be read or decoded, or is too large, has
        its reason as status.

    Raises:
        SfmError: If the folder has no image, or the server does not answer.
    """
    check_batch_size(batch_size)
    paths = find_images(folder)
    rows: list[FileRow] = []
    for files in batches(map(_read, paths), batch_size, lambda file: len(file.content or b"")):
        rows += _classify(client, folder, files)
        progress(len(rows), len(paths))
    return rows


def _read(path: pathlib.Path) -> _File:
    try:
        return _File(path, read_image_file(path))
    except UnsendableFileError as error:
        return _File(path, None, f"not sent: {error.reason}")


def _classify(
    client: ModelClient, folder: pathlib.Path, files: Sequence[_File]
) -> Iterator[FileRow]:
    contents = [file.content for file in files if file.content is not None]
    answers = iter(client.classify_bytes(contents))
    for file in files:
        name = _name(file.path.relative_to(folder))
        if file.content is None:
            yield FileRow(name, file.problem)
        else:
            yield _row(name, next(answers))


def _name(path: pathlib.Path) -> str:
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _row(name: str, answer: Answer) -> FileRow:
    if answer.status != CLASSIFIED:
        return FileRow(name, answer.status_words)
    return FileRow(name, answer.status_words, answer.class_id, answer.probabilities)
