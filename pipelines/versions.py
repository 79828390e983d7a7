"""Lists the pushed versions of a model, deletes old versions, or rolls back to an older one.

    python -m pipelines.versions --workdir=runs/cifar10
    python -m pipelines.versions --serving_dir=models --model_name=cifar10 --keep=3
    python -m pipelines.versions --serving_dir=gs://bucket/models --rollback_to=4

Works on the last export of --workdir, or on a model in --serving_dir. A server loads the highest
version number, and no number is used twice. A rollback therefore pushes a copy of the older version
under a new number. If both --rollback_to and --keep are given, the rollback comes first.

A --workdir that is a copy of another has a copy of the models in it. Models outside of it that the
other one pushed are listed, but only --serving_dir changes them.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from pipelines import command_line
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.serving.push_record import check_own, read_push
from sfm_tf.serving.versions import (
    ModelVersion,
    find_models,
    keep_newest,
    list_versions,
    model_folder,
    rollback,
)

MODULE = "pipelines.versions"
_YES_NO = {True: "yes", False: "NO", None: "unknown"}


def define_flags() -> None:
    """Defines the flags; only as a program, for some of them are named as a stage's."""
    flags.DEFINE_string(
        "serving_dir",
        None,
        "Folder of served models, or an address such as gs://bucket/models. The default is the "
        "folder of the last export of --workdir.",
        module_name=MODULE,
    )
    flags.DEFINE_string(
        "model_name",
        None,
        "Name of the model in --serving_dir; not needed if there is only one.",
        module_name=MODULE,
    )
    flags.DEFINE_bool(
        "list", False, "List the versions. This is also the default.", module_name=MODULE
    )
    flags.DEFINE_integer(
        "keep", None, "Keep this many newest versions; delete the others.", module_name=MODULE
    )
    flags.DEFINE_integer(
        "rollback_to", None, "Version that a server is to load again.", module_name=MODULE
    )


def find_folder(
    workdir: str | None, serving_dir: str | None, model_name: str | None, changes: bool = False
) -> str:
    """Returns the folder, or the address, of the versions of the model that is meant.

    Args:
        workdir: Working directory whose last export it is.
        serving_dir: Folder of served models, in the place of `workdir`.
        model_name: The model in `serving_dir`; None for the only one.
        changes: Whether versions are to be deleted or added.

    Raises:
        SfmError: If both or neither of the first two are given, nothing was exported, it is not
            clear which model is meant, or another working directory pushed what is to be changed.
    """
    if bool(workdir) == bool(serving_dir):
        raise SfmError("Give either --workdir or --serving_dir.")
    if workdir:
        root = pathlib.Path(workdir)
        push = read_push(RunDirectory(root).latest("export").folder, root)
        if changes:
            check_own(push, root)
        return push.versions
    names = [model_name] if model_name else find_models(serving_dir)
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise SfmError(f"Give --model_name; the models in {serving_dir} are: {found}.")
    return model_folder(serving_dir, names[0])


def table(versions: Sequence[ModelVersion]) -> str:
    """Returns the versions as lines of text, the newest last."""
    rows = [("version", "size", "pushed (UTC)", "blessed", "card", "")]
    rows += [_row(version, version is versions[-1]) for version in versions]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def _row(version: ModelVersion, is_highest: bool) -> tuple[str, ...]:
    notes = [
        "what a server loads" if is_highest else "",
        f"copy of {version.copy_of}" if version.copy_of else "",
        "" if version.complete else "incomplete",
    ]
    return (
        str(version.number),
        f"{version.size_bytes / 1e6:.1f} MB",
        (version.pushed_at or "unknown").replace("T", " ")[:16],
        _YES_NO[version.blessed],
        "yes" if version.has_model_card else "no",
        ", ".join(filter(None, notes)),
    )


def manage(folder: str, keep: int | None, rollback_to: int | None) -> str:
    """Rolls back and deletes as asked, and returns what to tell the user.

    Args:
        folder: The folder or address of the model's versions.
        keep: How many versions to keep; None for all.
        rollback_to: The version to go back to; None to stay.

    Raises:
        SfmError: If there is no such version, or the folder cannot be reached or written.
    """
    words = []
    if rollback_to is not None:
        copy = rollback(folder, rollback_to)
        made = f"; its copy is version {copy}" if copy != rollback_to else ", the newest already"
        words.append(f"Rolled back to version {rollback_to}{made}.")
    if keep is not None:
        deleted = ", ".join(map(str, keep_newest(folder, keep)))
        words.append(f"Deleted: {deleted or 'nothing'}.")
    versions = list_versions(folder)
    if not versions:
        raise SfmError(f"No model versions in {folder}; export a model or name another folder.")
    return "\n".join([*words, f"Versions in {folder}:", table(versions)])


def main() -> None:
    """Does what the flags say."""
    values = flags.FLAGS
    changes = values.keep is not None or values.rollback_to is not None
    folder = find_folder(values.workdir, values.serving_dir, values.model_name, changes)
    print(manage(folder, values.keep, values.rollback_to))


if __name__ == "__main__":
    define_flags()
    command_line.start_tool([MODULE], main)
