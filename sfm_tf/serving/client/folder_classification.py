"""Classifies a folder of images with a served model, a row per file."""

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sfm_tf.artifacts.atomic_files import write_text
from sfm_tf.errors import SfmError
from sfm_tf.serving.client.model_client import (
    CLASSIFIED,
    ModelClient,
    UnsendableFileError,
    batches,
    check_batch_size,
    read_image_file,
)

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
    for contents in batches(map(_read, paths), batch_size, len):
        answers = iter(client.classify_bytes(each for each in contents if isinstance(each, bytes)))
        for content in contents:
            name = paths[len(rows)].relative_to(folder).as_posix()
            name = os.fsencode(name).decode("utf-8", "backslashreplace")
            if isinstance(content, str):
                rows.append(FileRow(name, content))
                continue
            answer = next(answers)
            scores = (answer.class_id, answer.probabilities)
            is_classified = answer.status == CLASSIFIED
            rows.append(FileRow(name, answer.status_words, *(scores if is_classified else ())))
        progress(len(rows), len(paths))
    return rows


def _read(path: pathlib.Path) -> bytes | str:
    """Returns the content of a file, or in words why it is not sent."""
    try:
        return read_image_file(path)
    except UnsendableFileError as error:
        return f"not sent: {error.reason}"


FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What makes a spreadsheet run a cell; the last four are = + - @ of full width. The apostrophe is
here so that taking one off the front of a cell always gives the text back."""

_COLUMNS = ("file", "status", "class_id", "class_name", "probability")


def read_class_names(path: pathlib.Path) -> tuple[str, ...]:
    """Reads the class names that lie beside an exported model, `assets.extra/class_names.json`.

    Raises:
        SfmError: If the file cannot be read or is not a JSON list of names.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SfmError(f"Cannot read class names from {path}: {error}.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SfmError(f"Invalid class names in {path}; expected a JSON list of strings.")
    return tuple(names)


def check_output(path: pathlib.Path) -> None:
    """Raises `SfmError` unless rows can be written to `path`: before hours of work, not after."""
    if path.suffix.lower() not in _WRITERS:
        raise SfmError(f"Invalid output {str(path)!r}; expected a name in {' or '.join(_WRITERS)}.")
    if not path.parent.is_dir():
        raise SfmError(f"No folder {str(path.parent)!r} for the output; make it first.")


def write_rows(path: pathlib.Path, rows: Sequence[FileRow], class_names: Sequence[str]) -> None:
    """Writes rows, whole or not at all.

    A CSV file has the columns file, status, class_id, class_name and probability, and an apostrophe
    before each text that a spreadsheet would take for a formula. A JSON file is a list of objects
    with the same keys and `probabilities`, of every class.

    Args:
        path: Ends in .csv or .json.
        rows: What to write.
        class_names: Names of the classes in their order; none to leave them out.

    Raises:
        SfmError: If there are class names and not as many as classes.
    """
    check_output(path)
    for row in rows:
        if class_names and row.probabilities and len(row.probabilities) != len(class_names):
            raise SfmError(
                f"Found {len(class_names)} class names for {len(row.probabilities)} classes; give "
                "the class_names.json of the model that is served."
            )
    records = [_record(row, class_names) for row in rows]
    write_text(path, _WRITERS[path.suffix.lower()](records))


def _record(row: FileRow, class_names: Sequence[str]) -> dict[str, Any]:
    is_classified = row.class_id is not None
    return {
        "file": row.file,
        "status": row.status,
        "class_id": row.class_id,
        "class_name": class_names[row.class_id] if class_names and is_classified else None,
        "probability": row.probabilities[row.class_id] if is_classified else None,
        "probabilities": row.probabilities,
    }


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    # Every text is quoted, whatever it holds: a line end within one would otherwise begin a row.
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([_safe(record[column]) for column in _COLUMNS] for record in records)
    return text.getvalue()


def _safe(cell: Any) -> Any:
    is_formula = isinstance(cell, str) and cell.startswith(FORMULA_STARTS)
    return f"'{cell}" if is_formula else cell


def _json(records: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(records, indent=2, allow_nan=False) + "\n"


_WRITERS: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
    ".csv": _csv,
    ".json": _json,
}
