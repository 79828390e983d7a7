"""Executes one stage in a working directory with its live line and its closing line."""

import pathlib
import sys
from collections.abc import Callable

import pipelines.quiet_start  # noqa: F401  Before the library, which imports TensorFlow.
from pipelines.progress_line import ProgressLine
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory


def execute_stage(
    execution: Execution,
    run_directory: RunDirectory,
    produce: Callable[[pathlib.Path, ProgressLine], None],
    force: bool,
    unit: str = "",
) -> Artifact:
    """Returns the stage's artifact, made now or found finished, and says which.

    Args:
        execution: What is to be done.
        run_directory: Where artifacts are kept.
        produce: Writes the artifact's files, telling the progress line of it.
        force: Whether to do the work again even where the artifact is there.
        unit: What the progress line counts, if it is to tell their rate.
    """
    with ProgressLine(execution.stage, unit) as progress:
        outcome = execute(
            execution, run_directory, lambda folder: produce(folder, progress), force=force
        )
    artifact = outcome.artifact
    seconds = artifact.manifest.wall_seconds
    state = "found finished" if outcome.reused else f"finished in {seconds:.1f} s"
    print(f"{execution.stage}: {state}: {artifact.folder}", file=sys.stderr)
    return artifact
