"""Turns a stored evaluation into a report for people and for programs.

    python -m pipelines.report --workdir=runs/cifar10

Reads the evaluation of `pipelines.evaluate` and the artifacts it was made from; measures nothing
itself. Writes into <workdir>/report/<fingerprint>/ report.html (one file, no network), report.md,
report.json and the figures as PNG and SVG.
"""

import pathlib

from pipelines import command_line, flag_definitions
from pipelines.progress_line import ProgressLine
from pipelines.stage_execution import execute_stage
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.config import Experiment
from sfm_tf.report.collection import collect_inputs
from sfm_tf.report.document import build_report

MODULE = "pipelines.report"
flag_definitions.define_flags(["report"], MODULE)


def report(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the report on the latest evaluation."""
    evaluation = run_directory.latest("evaluate")
    inputs = {
        stage: run_directory.input_of(evaluation, stage) for stage in evaluation.manifest.inputs
    }

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        progress.update("tables and figures", 0, 1)
        records, models = inputs["ingest"], inputs.get("train")
        collected = collect_inputs(experiment.name, records, models, evaluation, experiment.report)
        build_report(collected, folder)
        progress.update("tables and figures", 1, 1)

    execution = Execution(
        stage="report",
        module=MODULE,
        configs={"report": experiment.report},
        seed=experiment.seed,
        inputs={**inputs, "evaluate": evaluation},
    )
    return execute_stage(execution, run_directory, produce, force)


if __name__ == "__main__":
    command_line.start([MODULE], report)
