"""Attacks the trained models, scores them on what the attacks make, and blesses them or not.

    python -m pipelines.evaluate --workdir=runs/cifar10 --attacks=fgsm,pgd --epsilons=4,8,16

TFX counterpart: Evaluator. Reads the models of `pipelines.train` and the test images they have not
seen. Writes into <workdir>/evaluate/<fingerprint>/ results.parquet (a row per image, defence,
threat model, attack and radius), the adversarial images, metrics.json, and BLESSED or NOT_BLESSED
with the reasons. A run that was interrupted does no finished attack again.
"""

import pathlib

from pipelines import command_line, flag_definitions
from pipelines.progress_line import ProgressLine
from pipelines.stage_execution import execute_stage
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.config import Experiment
from sfm_tf.evaluation.stored_evaluation import write_evaluation
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import read_schema
from sfm_tf.training.loading import load_defended_model, load_source_model

MODULE = "pipelines.evaluate"
flag_definitions.define_flags(["evaluation"], MODULE)


def evaluate(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the per-sample results, their summary and the blessing."""
    models = run_directory.latest("train")
    records = run_directory.input_of(models, "ingest")
    config = experiment.evaluation

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        images, labels = load_split(
            records.folder, "test", read_schema(records.folder), config.num_examples
        )
        write_evaluation(
            load_defended_model(models.folder),
            load_source_model(models.folder),
            images,
            labels,
            config,
            experiment.seed,
            folder,
            progress.update,
        )

    execution = Execution(
        stage="evaluate",
        module=MODULE,
        configs={"evaluation": config},
        seed=experiment.seed,
        inputs={"ingest": records, "train": models},
        resumable=True,
    )
    return execute_stage(execution, run_directory, produce, force)


if __name__ == "__main__":
    command_line.start([MODULE], evaluate)
