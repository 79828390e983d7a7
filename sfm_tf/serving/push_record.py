"""What a working directory keeps of a push, so that it can be copied, moved or mounted elsewhere.

A folder of served models inside the working directory is recorded as a path in it: a copy finds
its own versions. A folder outside is recorded in full, with the working directory that pushed
there, so that a copy of that directory does not take the versions for its own.
"""

import dataclasses
import pathlib
import posixpath
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.errors import SfmError
from sfm_tf.serving.versions import is_remote, model_folder

if TYPE_CHECKING:  # It imports TensorFlow, which a reader of records does without.
    from sfm_tf.serving.pushing import PushedModel

PUSHED_FILE = "pushed.json"
"""The record, in the artifact of the export stage."""

_DEFAULT_SERVING_DIR = "serving"


def portable_address(serving_dir: str, workdir: pathlib.Path) -> str:
    """Returns how to record a folder of served models.

    Args:
        serving_dir: Path, or address such as `gs://bucket/models`; empty for the folder of that
            name in the working directory.
        workdir: The working directory.

    Returns:
        A path in the working directory if the folder is really inside it, links followed; else
        a full path, or the address.
    """
    if is_remote(serving_dir):
        return serving_dir.rstrip("/")
    root = workdir.resolve()
    folder = pathlib.Path(serving_dir).expanduser() if serving_dir else root / _DEFAULT_SERVING_DIR
    folder = folder.resolve()
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)


def located(recorded: str, workdir: pathlib.Path) -> str:
    """Returns the path or address that `portable_address` recorded, as seen from here."""
    return recorded if is_remote(recorded) else str(workdir / recorded)


@dataclasses.dataclass(frozen=True)
class PushRecord:
    """A push, as the working directory that reads its record finds it.

    Attributes:
        versions: Folder or address of the model's versions.
        version: The version that was pushed.
        pushed_by: The working directory that pushed it, where its versions are outside of the one
            that reads this; empty where the record does not tell; None where they are inside.
        verification: How the served answers compared with the evaluated ones, as JSON values.
    """

    versions: str
    version: int
    pushed_by: str | None
    verification: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Path or address of the version that was pushed."""
        return f"{self.versions}/{self.version}"


def write_push(
    folder: pathlib.Path,
    pushed: "PushedModel",
    serving_dir: str,
    model_name: str,
    workdir: pathlib.Path,
) -> None:
    """Writes the record of a push into an artifact.

    Args:
        folder: Folder of the artifact.
        pushed: What was pushed.
        serving_dir: Folder of served models, as `portable_address` returns it.
        model_name: Name of the model.
        workdir: The working directory.
    """
    values = dataclasses.asdict(pushed)
    del values["folder"]
    values |= {"serving_dir": serving_dir, "model_name": model_name}
    if _is_outside(serving_dir, workdir):
        values["pushed_by"] = str(workdir.resolve())
    write_json(folder / PUSHED_FILE, values)


def read_push(folder: pathlib.Path, workdir: pathlib.Path) -> PushRecord:
    """Reads the record of a push.

    Args:
        folder: Folder of the artifact that holds it.
        workdir: The working directory that the artifact is in now.

    Raises:
        SfmError: If the record is missing or damaged, or leads out of the working directory.
    """
    path = folder / PUSHED_FILE
    values = read_json(path)
    try:
        if "serving_dir" not in values:
            values |= _from_older_record(values["folder"], workdir)
        serving_dir = str(values["serving_dir"])
        if ".." in pathlib.PurePosixPath(serving_dir).parts:
            raise ValueError(f"its serving_dir {serving_dir!r} leads elsewhere")
        pushed_by = None
        if _is_outside(serving_dir, workdir):
            pushed_by = str(values.get("pushed_by", ""))
        return PushRecord(
            model_folder(located(serving_dir, workdir), values["model_name"]),
            int(values["version"]),
            pushed_by,
            values["verification"],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SfmError(
            f"Cannot read {path} ({error}); run its stage again with --force."
        ) from error


def _from_older_record(folder: str, workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what a record of an earlier release says.

    Such a record holds the path of the version as the program named it, often relative to where it
    was started. If the working directory has this model in a folder of that name, that is meant.
    """
    serving_dir, model_name, version = folder.rsplit("/", 2)
    inside = posixpath.basename(serving_dir)
    if not is_remote(serving_dir):
        own = (workdir / inside / model_name).is_dir()
        serving_dir = inside if own else str(pathlib.Path(serving_dir).resolve())
    return {"serving_dir": serving_dir, "model_name": model_name, "version": version}


def _is_outside(serving_dir: str, workdir: pathlib.Path) -> bool:
    if is_remote(serving_dir):
        return True
    return not (workdir / serving_dir).resolve().is_relative_to(workdir.resolve())


def check_own(push: PushRecord, workdir: pathlib.Path) -> None:
    """Raises `SfmError` unless a working directory pushed the versions that its record names.

    A record that was copied with its working directory names versions that another directory
    serves; whoever deletes them must name them.
    """
    if push.pushed_by in (None, str(workdir.resolve())):
        return
    serving_dir, _, model_name = push.versions.rpartition("/")
    others = push.pushed_by or "a working directory that its record does not name"
    raise SfmError(
        f"The versions in {push.versions} were pushed by {others}, and {workdir} may be a copy of "
        "it; to change them all the same, put "
        f"{shlex.join([f'--serving_dir={serving_dir}', f'--model_name={model_name}'])} in place of "
        "--workdir."
    )
