"""Programs, run inside the test's process: a new one spends seconds on importing TensorFlow."""

import dataclasses
import sys

import pytest
from absl import app
from absl.testing import flagsaver


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def validated(new_run):
    """A working directory of the test's own with validated records."""
    from pipelines.validate import validate
    from tests.pipelines.tiny_digits import digits

    run_directory = new_run("ingest")
    validate(run_directory, digits(), False)
    return run_directory


@pytest.fixture
def run_program(monkeypatch, capsys):
    """Returns a function that runs a program, given as its `main`, with command-line arguments."""

    def run_app(main, flags_parser):
        raise SystemExit(main(flags_parser(sys.argv)))

    def run(main, *arguments):
        monkeypatch.setattr(app, "run", run_app)
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        capsys.readouterr()
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code, *capsys.readouterr())

    return run
