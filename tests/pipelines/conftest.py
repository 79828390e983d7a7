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
