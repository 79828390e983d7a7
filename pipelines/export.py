"""Exports a blessed model as a SavedModel, checks it in a fresh process, and pushes it.

    python -m pipelines.export --workdir=runs/cifar10 --serving_dir=models --model_name=cifar10

TFX counterparts: InfraValidator and Pusher. Exports the model that the latest evaluation blessed:
SFM-Defence or, if that was not among --defences, the first defence named there.

Writes <serving_dir>/<model_name>/<version>/: a SavedModel of the whole defended pipeline with its
model card and manifest. Writes <workdir>/export/<fingerprint>/pushed.json: the comparison of the
served answers with the evaluated ones, the latency and the memory.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping

from pipelines import command_line
from pipelines.model_artifacts import model_folders
from pipelines.report import reproduction_command
from pipelines.stage_execution import ProgressLine, execute_stage
from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.experiments import Experiment
from sfm_tf.report.collection import collect_card_inputs
from sfm_tf.serving import pushing
from sfm_tf.serving.settings import ExportConfig
from sfm_tf.serving.verification import describe_performance, read_performance
from sfm_tf.serving.versions import latest_version

MODULE = "pipelines.export"
PUSHED_FILE = "pushed.json"
command_line.define_flags(["export"], MODULE)


def export(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the record of the pushed version, and prints how fast the model answers.

    Raises:
        SfmError: If the model is not blessed, or does not answer as it was evaluated.
    """
    evaluation = run_directory.latest("evaluate")
    if "train" not in evaluation.manifest.inputs:
        raise SfmError(
            f"{evaluation.folder} evaluated a model of your own (--model), which is not exported; "
            f"run `python -m pipelines.evaluate --workdir={run_directory.root}` first."
        )
    inputs = run_directory.inputs_of(evaluation)
    config = _with_serving_dir(experiment.export, run_directory)

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        progress.update("checking in a fresh process", 0, 1)
        evaluated = _load(experiment.name, inputs, evaluation)
        pushed = pushing.push_blessed(evaluated, config, folder)
        write_json(folder / PUSHED_FILE, dataclasses.asdict(pushed))
        progress.update("checking in a fresh process", 1, 1)

    execution = Execution(
        stage="export",
        module=pushing.__name__,
        configs={"export": config},
        seed=experiment.seed,
        inputs={**inputs, "evaluate": evaluation},
    )
    artifact = execute_stage(execution, run_directory, produce, force)
    if not _is_served(artifact):
        # It was deleted, or another model was pushed over it: a server would not find it.
        artifact = execute_stage(execution, run_directory, produce, True)
    _print_performance(artifact)
    return artifact


def _load(
    experiment: str, inputs: Mapping[str, Artifact], evaluation: Artifact
) -> pushing.EvaluatedModel:
    card = collect_card_inputs(experiment, inputs["ingest"], inputs["train"], evaluation)
    command = reproduction_command(experiment, card.manifests)
    folders = model_folders(inputs)
    return pushing.load_evaluated(inputs["ingest"], evaluation, folders, card, command)


def _with_serving_dir(config: ExportConfig, run_directory: RunDirectory) -> ExportConfig:
    serving_dir = config.serving_dir or str(run_directory.root / "serving")
    return dataclasses.replace(config, serving_dir=serving_dir)


def pushed_folder(artifact: Artifact) -> pathlib.Path:
    """Returns the folder of the version that an export pushed."""
    return pathlib.Path(pushed_address(artifact))


def pushed_address(artifact: Artifact) -> str:
    """Returns the path or address of the version that an export pushed."""
    return read_json(artifact.folder / PUSHED_FILE)["folder"]


def _is_served(artifact: Artifact) -> bool:
    """Whether a version is there and is the one that a server loads: the highest."""
    versions, _, number = pushed_address(artifact).rpartition("/")
    return latest_version(versions) == int(number)


def _print_performance(artifact: Artifact) -> None:
    verification = read_json(artifact.folder / PUSHED_FILE)["verification"]
    performance = read_performance(verification["performance"])
    print(f"export: {describe_performance(performance)}", file=sys.stderr)


if __name__ == "__main__":
    command_line.start([MODULE], export)
