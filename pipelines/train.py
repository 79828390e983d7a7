"""Trains the classifier, the masker, and the independent source model of black-box attacks.

    python -m pipelines.train --workdir=runs/cifar10 --epochs=50
    python -m pipelines.train --workdir=runs/cifar10 --tuned
    python -m pipelines.train --workdir=runs/cifar10 --adversarial_training=trades

TFX counterpart: Trainer. Reads the records that `pipelines.validate` passed. Writes
<workdir>/train/<fingerprint>/: classifier.keras, masker.keras, source.keras, defence.json,
history.json, loss_weights.json, timing.json, checkpoints and TensorBoard logs (tensorboard --logdir
<workdir>/train). --adversarial_training also trains a classifier, and a classifier with a masker,
on adversarial images; these go to <workdir>/train_adversarially/<fingerprint>/.

An interrupted training continues after its last checkpoint and ends with the same weights. By
default there is a checkpoint after each epoch; --checkpoint_steps adds some within epochs.

--strategy=mirrored uses all GPUs of the machine. For --strategy=multi_worker, start the same
command on every machine that the environment variable TF_CONFIG lists, with a --workdir that all of
them can reach. The first worker writes the artifact. If a worker fails, start all of them again.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping

from pipelines import command_line
from pipelines.stage_execution import ProgressLine, execute_stage
from pipelines.validate import check_validated
from sfm_tf.artifacts.execution import Execution, assist
from sfm_tf.artifacts.run_directory import ADVERSARIAL_STAGE, Artifact, RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.experiments import Experiment
from sfm_tf.training.devices import is_chief
from sfm_tf.training.model_building import with_resolved_precision
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.training import (
    TrainingResult,
    TrainingSession,
    train_defence,
    train_on_adversarial_images,
)
from sfm_tf.tuning.best import tuned_values

MODULE = "pipelines.train"
command_line.define_flags(["model", "training", "training_execution"], MODULE)

_SHOWN = (
    "classification_loss",
    "mask_loss",
    "mask_mean",
    "bare_accuracy",
    "defended_accuracy",
    "adversarial_accuracy",
)
_ADVERSARIAL_SETTINGS = (
    "adversarial_training",
    "adversarial_epochs",
    "adversarial_epsilon",
    "adversarial_step_size",
    "adversarial_iterations",
    "trades_beta",
)
_ORDINARY_SETTINGS = ("epochs", "source_epochs")


def train(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact | None:
    """Returns the trained models, and trains on adversarial images besides if that is asked for.

    Of several workers only the first has them; the others return None.
    """
    config = _reset(experiment.training, _ADVERSARIAL_SETTINGS)
    artifact = _execute("train", train_defence, config, run_directory, experiment, force)
    if experiment.training.adversarial_training != "none":
        train_adversarially(run_directory, experiment, force)
    return artifact


def train_adversarially(
    run_directory: RunDirectory, experiment: Experiment, force: bool
) -> Artifact | None:
    """Returns the models trained on adversarial images, by the method that the settings name.

    Of several workers only the first has them; the others return None.

    Raises:
        SfmError: If they name none.
    """
    config = _reset(experiment.training, _ORDINARY_SETTINGS)
    return _execute(
        ADVERSARIAL_STAGE, train_on_adversarial_images, config, run_directory, experiment, force
    )


def _tuning_of(run_directory: RunDirectory, records: Artifact) -> Artifact:
    tuning = run_directory.latest("tune")
    if tuning.manifest.inputs["ingest"] != records.manifest.fingerprint:
        raise SfmError(
            f"The tuning in {tuning.folder} used other images than {records.folder}; run "
            "`python -m pipelines.tune` again, or train without --tuned."
        )
    return tuning


def _reset(config: TrainingConfig, names: tuple[str, ...]) -> TrainingConfig:
    """Returns the settings with the named ones as if nobody had set them.

    A training is found finished by its settings; those that it does not read are not among them.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: defaults[name] for name in names})


def _inputs(
    run_directory: RunDirectory, config: TrainingConfig
) -> tuple[dict[str, Artifact], TrainingConfig]:
    """Returns what a training reads, and its settings with nothing left to be looked up."""
    inputs = {"ingest": run_directory.latest("ingest")}
    check_validated(run_directory, inputs["ingest"])
    if config.tuned:
        inputs["tune"] = _tuning_of(run_directory, inputs["ingest"])
        config = dataclasses.replace(config, **tuned_values(inputs["tune"].folder))
    return inputs, with_resolved_precision(config)


def _shown_on(progress: ProgressLine) -> Callable[..., None]:
    def show(phase: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        shown = {name: metrics[name] for name in _SHOWN if name in metrics}
        progress.update(phase, done, total, shown)

    return show


def _execute(
    stage: str,
    work: Callable[[TrainingSession], TrainingResult],
    config: TrainingConfig,
    run_directory: RunDirectory,
    experiment: Experiment,
    force: bool,
) -> Artifact | None:
    inputs, config = _inputs(run_directory, config)

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        session = TrainingSession.open(
            inputs["ingest"].folder,
            experiment.model,
            config,
            experiment.seed,
            folder,
            _shown_on(progress),
            experiment.training_execution,
        )
        result = work(session)
        if result.warning:
            print(f"{stage}: warning: {result.warning}", file=sys.stderr)

    execution = Execution(
        stage=stage,
        modules=["sfm_tf.training.training"],
        configs={"model": experiment.model, "training": config},
        seed=experiment.seed,
        inputs=inputs,
        resumable=True,
    )
    if is_chief(experiment.training_execution.strategy):
        return execute_stage(execution, run_directory, produce, force, "steps")
    with ProgressLine(stage, "steps") as progress:
        assist(execution, run_directory, lambda folder: produce(folder, progress))
    return None


if __name__ == "__main__":
    command_line.start([MODULE], train)
