"""What all programs share: flags from the settings, --help, one-line errors, exit status."""

import dataclasses
import errno
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from sfm_tf import experiments
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError, in_one_line, reason
from sfm_tf.experiments import Experiment

_SHARED = "pipelines (all stages)"
_DEFAULT_EXPERIMENT = "digits"

_EXPERIMENT = flags.DEFINE_enum(
    "experiment",
    None,
    list(experiments.EXPERIMENTS),
    "Preset of all settings. The default is the preset that --workdir was made with, or "
    f"{_DEFAULT_EXPERIMENT} for a new one.",
    module_name=_SHARED,
)
_SEED = flags.DEFINE_integer("seed", None, "Seed of all random choices.", module_name=_SHARED)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Working directory. The default is runs/<experiment>.",
    module_name=_SHARED,
)
_FORCE = flags.DEFINE_bool(
    "force",
    False,
    "Repeat the work even if it is finished already.",
    module_name=_SHARED,
)
_DEBUG = flags.DEFINE_bool(
    "debug", False, "Also print the traceback of an error.", module_name=_SHARED
)

Stage = Callable[[RunDirectory, Experiment, bool], object]
"""Takes the working directory, the settings and whether to repeat finished work."""

Alternative = Callable[[Sequence[str], str | None], bool]
"""Takes the arguments that are no flags and --workdir; returns whether it did all of the work."""

_EXIT_FAILED = 1
_EXIT_USER_ERROR = 2
_EXIT_INTERRUPTED = 130

_DEFINERS = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
}


def define_flags(sections: Sequence[str], module_name: str, only: Sequence[str] = ()) -> None:
    """Defines one flag for each field of the named sections of an experiment.

    A flag's default is None, which stands for the preset's value.

    Args:
        sections: Keys of `experiments.SECTIONS`.
        module_name: Heading that `--help` lists them under.
        only: Names of the fields that get a flag, where the section is otherwise another stage's;
            all of them by default.
    """
    for section in sections:
        for field in dataclasses.fields(experiments.SECTIONS[section]):
            if not only or field.name in only:
                _define(field, module_name)


def _define(field: dataclasses.Field, module_name: str) -> None:
    choices = field.metadata["choices"]
    listed = f" One of: {', '.join(choices)}." if choices else ""
    _DEFINERS[type(field.default)](
        field.name,
        None,
        f"{field.metadata['help']}{listed}",
        module_name=module_name,
    )


def experiment_from_flags(owner: str | None) -> Experiment:
    """Returns the preset asked for, with every field that a flag gives replaced.

    Args:
        owner: Name of the experiment that owns the working directory; None for a new one.

    Raises:
        SfmError: If a value is not of the field's kind or outside its limits.
    """
    experiment = experiments.preset(_EXPERIMENT.value or owner or _DEFAULT_EXPERIMENT)
    values: dict[str, Any] = {}
    for section in experiments.SECTIONS:
        for field in dataclasses.fields(experiments.SECTIONS[section]):
            if field.name in flags.FLAGS and flags.FLAGS[field.name].value is not None:
                values[field.name] = _typed(field, flags.FLAGS[field.name].value)
    if _SEED.value is not None:
        values["seed"] = _SEED.value
    return experiments.override(experiment, values)


def _typed(field: dataclasses.Field, value: Any) -> Any:
    """Returns a flag's value as the field's type, and a path in full: absl gives strings."""
    if field.metadata["is_place"] and value and "://" not in value:
        # Programs may be started elsewhere when they read what a stage was given.
        return os.path.abspath(os.path.expanduser(value))
    if not isinstance(field.default, tuple):
        return value
    if not value:
        raise SfmError(f"Empty --{field.name}; give at least one value.")
    kind = type(field.default[0])
    try:
        return tuple(kind(item) for item in value)
    except ValueError as error:
        received = ",".join(value)
        raise SfmError(f"Invalid --{field.name}={received}; expected {kind.__name__}s.") from error


def start(
    module_names: Sequence[str], stage: Stage, alternative: Alternative | None = None
) -> None:
    """Runs a stage as a program: parses the flags, does the work, exits with a status.

    An error is reported in one line.

    Args:
        module_names: Headings whose flags `--help` lists, the stage's own first.
        stage: The stage.
        alternative: What else the program can do, asked before a working directory is opened.
    """

    def work(arguments: Sequence[str]) -> None:
        if alternative is None or not alternative(arguments, _WORKDIR.value):
            _refuse_arguments(arguments)
            stage(*_open_run_directory(), _FORCE.value)

    _start((*module_names, _SHARED), work)


def start_tool(module_names: Sequence[str], tool: Callable[[], object]) -> None:
    """As `start`, for a program that is no stage: it has no working directory and no settings.

    Args:
        module_names: Headings whose flags `--help` lists.
        tool: What to do.
    """

    def work(arguments: Sequence[str]) -> None:
        _refuse_arguments(arguments)
        tool()

    _start(module_names, work)


def _start(headings: Sequence[str], work: Callable[[Sequence[str]], object]) -> None:
    app.run(
        lambda argv: _exit_status(work, argv[1:]),
        flags_parser=lambda argv: _parse_flags(argv, headings),
    )


def _refuse_arguments(arguments: Sequence[str]) -> None:
    if arguments:
        raise SfmError(f"Unexpected argument {arguments[0]!r}; write settings as --name=value.")


def _open_run_directory() -> tuple[RunDirectory, Experiment]:
    if _WORKDIR.value is None:
        experiment = experiment_from_flags(None)
        run_directory = RunDirectory(pathlib.Path("runs") / experiment.name)
    else:
        run_directory = RunDirectory(pathlib.Path(_WORKDIR.value))
        experiment = experiment_from_flags(run_directory.experiment())
    run_directory.check_owner(experiment.name)
    return run_directory, experiment


def _parse_flags(arguments: Sequence[str], headings: Sequence[str]) -> list[str]:
    if {"--help", "-help", "-h", "-?"} & set(arguments[1:]):
        print(sys.modules["__main__"].__doc__)
        if _SHARED in headings:
            print(
                "A setting that is not given has the value of the preset that --experiment names."
            )
        for module_name in headings:
            print(flags.FLAGS.module_help(module_name))
        raise SystemExit(0)
    app.define_help_flags()
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        known = ", ".join(_flag_names(headings))
        print(f"Error: Unknown flag --{error.flagname}; expected one of {known}.", file=sys.stderr)
        raise SystemExit(_EXIT_USER_ERROR) from error
    except flags.Error as error:
        print(f"Error: {error} See --help.", file=sys.stderr)
        raise SystemExit(_EXIT_USER_ERROR) from error


def _flag_names(headings: Sequence[str]) -> list[str]:
    by_module = flags.FLAGS.flags_by_module_dict()
    return sorted(f"--{flag.name}" for name in headings for flag in by_module[name])


def _exit_status(work: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """Does the work and returns the status to exit with, after one line about any error."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        work(arguments)
    except KeyboardInterrupt:
        print("\nInterrupted. Finished stages are kept; run again to continue.", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except Exception as error:  # The outermost frame: nothing above could report it better.
        if _DEBUG.value:
            traceback.print_exc()
        print(f"Error: {describe(error)}", file=sys.stderr)
        return _EXIT_USER_ERROR if isinstance(error, SfmError) else _EXIT_FAILED
    return 0


def describe(error: Exception) -> str:
    """Returns one line about `error`: what was found and what the user can do."""
    message = " ".join(reason(error).split())
    if isinstance(error, SfmError):
        return message
    if _is_full_disk(error):
        return f"No space left on the disk ({message}); free some space and run again."
    if isinstance(error, OSError):
        return f"{message}; finished stages are kept. Correct the cause and run again."
    kind = type(error).__name__
    message = in_one_line(error, 500)
    return f"Unexpected {kind}: {message}. This is a bug: run again with --debug and report it."


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # TensorFlow's writers and `shutil.copytree` raise errors that only their text tells apart.
    return "No space left on device" in reason(error)
