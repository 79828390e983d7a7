"""Converts a dataset to sharded TFRecords with a schema and statistics.

    python -m pipelines.ingest --experiment=cifar10 --data_dir=data/tfds --workdir=runs/cifar10

TFX counterparts: ExampleGen, StatisticsGen, SchemaGen. Writes <workdir>/ingest/<fingerprint>/: the
splits train, validation (taken from the training images) and test, schema.json and statistics.json.
"""

import pathlib

from pipelines import command_line
from pipelines.stage_execution import ProgressLine, execute_stage
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.datasets import ingestion
from sfm_tf.experiments import Experiment

MODULE = "pipelines.ingest"
command_line.define_flags(["data"], MODULE)


def ingest(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the records of the experiment's dataset, and assigns the directory to it."""

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        ingestion.ingest(experiment.data, experiment.seed, folder, progress.update)

    execution = Execution(
        stage="ingest",
        modules=["sfm_tf.datasets.ingestion"],
        configs={"data": experiment.data},
        seed=experiment.seed,
        inputs={},
        source=ingestion.source_version(experiment.data),
    )
    with run_directory.claimed(experiment.name):
        return execute_stage(execution, run_directory, produce, force)


if __name__ == "__main__":
    command_line.start([MODULE], ingest)
