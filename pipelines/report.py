"""Writes the report of a finished evaluation: a web page, Markdown and JSON.

    python -m pipelines.report --workdir=runs/cifar10

Reads the latest evaluation and the artifacts it was made from. Results of `pipelines.tune` and
`pipelines.ablate` are included if they are of the same records. This stage measures nothing itself.
Writes <workdir>/report/<fingerprint>/: report.html (one file that needs no network), report.md,
report.json and the figures as PNG and SVG.

    python -m pipelines.report --compare RUN_A RUN_B ...
    python -m pipelines.report --compare=RUN_A,RUN_B --format=json

With --compare it compares the latest evaluations of two or more working directories image by image.
All must have evaluated the same images. Writes compare.html, compare.md and compare.json into
comparison/, or into <workdir>/report/comparison/ if --workdir is given. --format=json prints the
JSON document instead of a summary.
"""

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from absl import flags

from pipelines import command_line
from pipelines.stage_execution import ProgressLine, execute_stage
from sfm_tf import experiments
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.experiments import Experiment
from sfm_tf.report.collection import collect_inputs, find_studies
from sfm_tf.report.comparison import collect_runs
from sfm_tf.report.comparison_document import build_comparison
from sfm_tf.report.document import build_report
from sfm_tf.report.report_inputs import changed_flags


def reproduction_command(experiment: str, manifests: Sequence[Manifest]) -> str:
    """Returns the command line that makes artifacts and all they were made from.

    Args:
        experiment: Name of the preset that the settings started from.
        manifests: Manifests of the artifacts, the last stage's at the end; its seed is given.
    """
    preset = experiments.preset(experiment)
    flags = [f"--experiment={experiment}", f"--seed={manifests[-1].seed}"]
    flags += [
        flag
        for manifest in manifests
        for section, values in manifest.config.items()
        for flag in changed_flags(config_values(getattr(preset, section)), values)
    ]
    return shlex.join(["python", "-m", "pipelines.run", *flags])


MODULE = "pipelines.report"
command_line.define_flags(["report"], MODULE)


def report(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the report on the latest evaluation."""
    evaluation = run_directory.latest("evaluate")
    inputs = run_directory.inputs_of(evaluation)
    inputs |= find_studies(run_directory, inputs["ingest"])

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        progress.update("tables and figures", 0, 1)
        preset = experiments.preset(experiment.name)
        collected = collect_inputs(experiment.name, inputs, evaluation, experiment.report, preset)
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


def compare(workdirs: Sequence[str], folder: pathlib.Path) -> dict[str, Any]:
    """Writes a comparison of the latest evaluations of working directories.

    Args:
        workdirs: Two or more.
        folder: Where to; made if it is not there.

    Returns:
        What its compare.json holds.

    Raises:
        SfmError: If one has no evaluation, or they are of different images.
    """
    runs = collect_runs(workdirs, [RunDirectory(pathlib.Path(each)) for each in workdirs])
    folder.mkdir(parents=True, exist_ok=True)
    return build_comparison(runs, folder)


def define_flags() -> None:
    """Defines what only the program itself takes, not a run of all stages."""
    flags.DEFINE_list(
        "compare",
        None,
        "Working directories to compare. More can follow as arguments.",
        module_name=MODULE,
    )
    flags.DEFINE_enum(
        "format", "text", ["text", "json"], "Format of the printed result.", module_name=MODULE
    )


def _report_and_print(run_directory: RunDirectory, experiment: Experiment, force: bool) -> None:
    artifact = report(run_directory, experiment, force)
    if flags.FLAGS["format"].value == "json":
        print((artifact.folder / "report.json").read_text(encoding="utf-8"), end="")
    else:
        print(f"Report: {artifact.folder / 'report.html'}")


def _compare_and_print(arguments: Sequence[str], workdir: str | None) -> bool:
    """Compares where --compare asks for it, and tells whether it did."""
    if flags.FLAGS["compare"].value is None:
        return False
    folder = pathlib.Path("comparison")
    if workdir:
        folder = RunDirectory(pathlib.Path(workdir)).shared_folder("report", "comparison")
    value = compare([*flags.FLAGS["compare"].value, *arguments], folder)
    if flags.FLAGS["format"].value == "json":
        print((folder / "compare.json").read_text(encoding="utf-8"), end="")
    else:
        print("\n".join([*value["summary"], f"Comparison: {folder / 'compare.html'}"]))
    return True


if __name__ == "__main__":
    define_flags()
    command_line.start([MODULE], _report_and_print, _compare_and_print)
