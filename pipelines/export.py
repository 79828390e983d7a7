"""Puts a blessed model where a server finds it, after a fresh process answered as evaluated.

    python -m pipelines.export --workdir=runs/cifar10 --serving_dir=models --model_name=cifar10

TFX counterparts: InfraValidator and Pusher. Reads the models that the latest evaluation blessed.
Writes <serving_dir>/<model_name>/<version>/, a SavedModel of the whole defended pipeline, and into
<workdir>/export/<fingerprint>/ how its answers compared with those of the evaluated model.
"""

import dataclasses
import pathlib

from pipelines import command_line, flag_definitions
from pipelines.progress_line import ProgressLine
from pipelines.stage_execution import execute_stage
from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.config import Experiment, ExportConfig
from sfm_tf.evaluation.blessing import read_blessing
from sfm_tf.evaluation.stored_evaluation import evaluation_settings
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import read_schema
from sfm_tf.serving.pushing import push_blessed
from sfm_tf.serving.versions import next_version
from sfm_tf.training.loading import load_defended_model

MODULE = "pipelines.export"
PUSHED_FILE = "pushed.json"
flag_definitions.define_flags(["export"], MODULE)


def export(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the record of the pushed version.

    Raises:
        SfmError: If the model is not blessed, or does not answer as it was evaluated.
    """
    evaluation = run_directory.latest("evaluate")
    models = run_directory.input_of(evaluation, "train")
    records = run_directory.input_of(evaluation, "ingest")
    config = _with_serving_dir(experiment.export, run_directory)

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        progress.update("checking in a fresh process", 0, 1)
        schema = read_schema(records.folder)
        images, _ = load_split(
            records.folder, "test", schema, evaluation_settings(evaluation).num_examples
        )
        pushed = push_blessed(
            load_defended_model(models.folder),
            schema.class_names,
            images,
            read_blessing(evaluation.folder),
            config,
            folder,
        )
        value = {
            "folder": str(pushed.folder),
            "version": pushed.version,
            "verification": dataclasses.asdict(pushed.verification),
        }
        write_json(folder / PUSHED_FILE, value)
        progress.update("checking in a fresh process", 1, 1)

    execution = Execution(
        stage="export",
        module=MODULE,
        configs={"export": config},
        seed=experiment.seed,
        inputs={"ingest": records, "train": models, "evaluate": evaluation},
    )
    artifact = execute_stage(execution, run_directory, produce, force)
    if not _is_served(pushed_folder(artifact)):
        # It was deleted, or another model was pushed over it: a server would not find it.
        artifact = execute_stage(execution, run_directory, produce, True)
    return artifact


def _with_serving_dir(config: ExportConfig, run_directory: RunDirectory) -> ExportConfig:
    serving_dir = config.serving_dir or str(run_directory.root / "serving")
    return dataclasses.replace(config, serving_dir=serving_dir)


def pushed_folder(artifact: Artifact) -> pathlib.Path:
    """Returns the folder of the version that an export pushed."""
    return pathlib.Path(read_json(artifact.folder / PUSHED_FILE)["folder"])


def _is_served(folder: pathlib.Path) -> bool:
    """Whether a version is there and is the one that a server loads: the highest."""
    return folder.is_dir() and next_version(folder.parent) == int(folder.name) + 1


if __name__ == "__main__":
    command_line.start([MODULE], export)
