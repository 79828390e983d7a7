"""What every stage's program shares: its start, its help, its flags and its one-line errors."""

import errno
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from pipelines import flag_definitions
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.config import Experiment
from sfm_tf.errors import SfmError

_MODULE = "pipelines (all stages)"
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Working directory; by default runs/<experiment>.", module_name=_MODULE
)
_FORCE = flags.DEFINE_bool(
    "force", False, "Do the work again even where its artifact is there.", module_name=_MODULE
)
_DEBUG = flags.DEFINE_bool(
    "debug", False, "Show the traceback of an error as well.", module_name=_MODULE
)

Verb = Callable[[RunDirectory, Experiment, bool], object]
"""A stage: takes the working directory, the settings and whether to force; makes an artifact."""

Other = Callable[[Sequence[str], str | None], bool]
"""Takes the arguments that are no flags and --workdir; tells whether that was all of the work."""

_EXIT_FAILED = 1
_EXIT_USER_ERROR = 2
_EXIT_INTERRUPTED = 130


def start(module_names: Sequence[str], verb: Verb, instead: Other | None = None) -> None:
    """Runs a stage as a program and exits: parses flags, calls `verb`, reports errors in one line.

    Args:
        module_names: Headings whose flags `--help` lists, the stage's own first.
        verb: The stage.
        instead: What else the program does where its flags ask for that, called before the working
            directory is opened or made.
    """

    def work(arguments: Sequence[str]) -> None:
        if instead is None or not instead(arguments, _WORKDIR.value):
            _refuse(arguments)
            verb(*_open(), _FORCE.value)

    _start((*module_names, _MODULE), work)


def start_tool(module_names: Sequence[str], tool: Callable[[], object]) -> None:
    """As `start`, for a program that is no stage: it has no working directory and no settings.

    Args:
        module_names: Headings whose flags `--help` lists.
        tool: What to do.
    """

    def work(arguments: Sequence[str]) -> None:
        _refuse(arguments)
        tool()

    _start(module_names, work)


def _refuse(arguments: Sequence[str]) -> None:
    if arguments:
        raise SfmError(f"Unexpected argument {arguments[0]!r}; settings are given as --name=value.")


def _start(headings: Sequence[str], work: Callable[[Sequence[str]], object]) -> None:
    def parse(arguments: Sequence[str]) -> list[str]:
        return _parse_flags(arguments, headings)

    app.run(lambda argv: _run(argv, work), flags_parser=parse)


def _parse_flags(arguments: Sequence[str], headings: Sequence[str]) -> list[str]:
    if {"--help", "-help", "-h", "-?"} & set(arguments[1:]):
        print(sys.modules["__main__"].__doc__)
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


def _run(argv: Sequence[str], work: Callable[[Sequence[str]], object]) -> int:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        work(argv[1:])
    except KeyboardInterrupt:
        print("\nInterrupted. Finished stages are kept; run again to go on.", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except Exception as error:  # The outermost frame: nothing above could report it better.
        if _DEBUG.value:
            traceback.print_exc()
        print(f"Error: {describe(error)}", file=sys.stderr)
        return _EXIT_USER_ERROR if isinstance(error, SfmError) else _EXIT_FAILED
    return 0


def _open() -> tuple[RunDirectory, Experiment]:
    if _WORKDIR.value is None:
        experiment = flag_definitions.experiment_from_flags(None)
        run_directory = RunDirectory(pathlib.Path("runs") / experiment.name)
    else:
        run_directory = RunDirectory(pathlib.Path(_WORKDIR.value))
        experiment = flag_definitions.experiment_from_flags(run_directory.experiment())
    run_directory.claim(experiment.name)
    return run_directory, experiment


def describe(error: Exception) -> str:
    """Returns one line about `error`: what was found and what the user can do."""
    message = " ".join(str(error).split())
    if isinstance(error, SfmError):
        return message
    if _is_full_disk(error):
        return f"No space left on the disk ({message}); free some and run again."
    if isinstance(error, OSError):
        return f"{message}; finished stages are kept. Mend it and run again."
    kind = type(error).__name__
    return f"Unexpected {kind}: {message}. This is a defect: rerun with --debug and report it."


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # TensorFlow's writers raise their own errors, told apart from others only by their text.
    return "No space left on device" in str(error)
