"""Flags that tests can read, and artifacts that later stages start from, made once per session.

`records`, `models` and `evaluation` are for reading only: all tests, on all of pytest-xdist's
workers, share them. A test that writes asks `new_run` for a working directory of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from absl import flags

if TYPE_CHECKING:
    from sfm_tf.artifacts.run_directory import Artifact, RunDirectory

STAGES = ("ingest", "train", "evaluate")


def pytest_configure() -> None:
    # Only `app.run` parses them otherwise.
    flags.FLAGS.mark_as_parsed()
    # Waiting for the disk takes 8 ms a call, and no test outlives a crash of the machine. `fstat`,
    # too, refuses what is no open file.
    os.fsync = os.fstat


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Waits until no other process is in this block with the same file."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(name="shared_artifact", scope="session")
def _shared_artifact(tmp_path_factory) -> Callable[[str], Artifact]:
    """Returns the artifact of a stage, made by the first test of any worker that asks for it."""
    # Not at the top: pytest-xdist's controlling process reads this file and needs no TensorFlow.
    from sfm_tf.artifacts.run_directory import RunDirectory
    from tests import artifacts

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    run_directory = RunDirectory(folder / "shared_run")
    makers = {
        "ingest": artifacts.make_records,
        "train": lambda run: artifacts.make_models(run, artifacts.make_records(run)),
        "evaluate": artifacts.make_evaluation,
    }

    def shared(stage: str) -> Artifact:
        with locked(folder / "shared_run.lock"):
            run_directory.claim("digits")
            if not run_directory.has_finished(stage):
                makers[stage](run_directory)
            return run_directory.latest(stage)

    return shared


@pytest.fixture(scope="session")
def records(shared_artifact) -> Artifact:
    """100 digits to train on and 20 to test on."""
    return shared_artifact("ingest")


@pytest.fixture(scope="session")
def models(shared_artifact) -> Artifact:
    """Untrained models for `records`."""
    return shared_artifact("train")


@pytest.fixture(scope="session")
def evaluation(shared_artifact) -> Artifact:
    """A blessed FGSM evaluation of `models`."""
    return shared_artifact("evaluate")


@pytest.fixture(scope="session")
def new_run(shared_artifact, tmp_path_factory) -> Callable[[str], RunDirectory]:
    """Returns a new working directory with copies of the shared artifacts up to a stage."""
    from sfm_tf.artifacts.run_directory import RunDirectory

    def copy(last_stage: str) -> RunDirectory:
        shared = shared_artifact(last_stage).folder.parents[1]
        run_directory = RunDirectory(tmp_path_factory.mktemp("run"))
        run_directory.claim("digits")
        for stage in STAGES[: STAGES.index(last_stage) + 1]:
            shutil.copytree(shared / stage, run_directory.root / stage)
        return run_directory

    return copy
