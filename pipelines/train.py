"""Trains the classifier, the masker, and the independent model that black-box attacks start from.

    python -m pipelines.train --workdir=runs/cifar10 --epochs=50

TFX counterpart: Trainer. Reads the records that `pipelines.validate` passed. Writes into
<workdir>/train/<fingerprint>/ classifier.keras, masker.keras, source.keras, defence.json,
history.json, checkpoints and TensorBoard logs (tensorboard --logdir <workdir>/train). After an
interruption it goes on behind the last finished epoch.
"""

import dataclasses
import pathlib
import sys

from pipelines import command_line, flag_definitions
from pipelines.progress_line import ProgressLine
from pipelines.stage_execution import execute_stage
from pipelines.validate import check_validated
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.config import Experiment
from sfm_tf.training.precision import resolve_precision
from sfm_tf.training.training import train_defence

MODULE = "pipelines.train"
flag_definitions.define_flags(["model", "training"], MODULE)

_SHOWN = ("classification_loss", "mask_loss", "mask_mean", "bare_accuracy", "defended_accuracy")


def train(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the trained models."""
    records = run_directory.latest("ingest")
    check_validated(run_directory, records)
    # What "auto" stands for depends on the device, and so do the weights.
    precision = resolve_precision(experiment.training.mixed_precision)
    config = dataclasses.replace(experiment.training, mixed_precision=precision)

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        def show(phase: str, done: int, total: int, metrics: dict[str, float]) -> None:
            shown = {name: metrics[name] for name in _SHOWN if name in metrics}
            progress.update(phase, done, total, shown)

        result = train_defence(
            records.folder,
            experiment.model,
            config,
            experiment.seed,
            folder,
            show,
        )
        if result.warning:
            print(f"train: warning: {result.warning}", file=sys.stderr)

    execution = Execution(
        stage="train",
        module=MODULE,
        configs={"model": experiment.model, "training": config},
        seed=experiment.seed,
        inputs={"ingest": records},
        resumable=True,
    )
    return execute_stage(execution, run_directory, produce, force)


if __name__ == "__main__":
    command_line.start([MODULE], train)
