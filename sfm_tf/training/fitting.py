"""Carries a plan of epochs out: passes over the images, checkpoints, history and logs."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from sfm_tf.config import TrainingConfig
from sfm_tf.training.batches import evaluation_batches, training_batches, training_steps
from sfm_tf.training.checkpoints import Checkpoints, History
from sfm_tf.training.mask_collapse import describe_collapse
from sfm_tf.training.plan import Epoch
from sfm_tf.training.sparse_feature_masker_trainer import (
    TRAINING_METRICS,
    SparseFeatureMaskerTrainer,
)
from sfm_tf.training.step_watch import Progress, StepWatch, check_finite


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, float32 in [0, 1] of shape `(count, height, width, channels)`, and their labels."""

    images: np.ndarray | tf.Tensor
    labels: np.ndarray | tf.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitting:
    """The training of one `SparseFeatureMaskerTrainer` by a plan.

    Attributes:
        trainer: Compiled.
        plan: Its epochs.
        config: Batch size and augmentation.
        training: Images to train on.
        validation: Images to measure on after each epoch.
        seed: Seed of order and augmentation of the training images.
        checkpoints: Where the state is saved after each epoch and resumed from.
        logs: Folder of the TensorBoard logs.
        progress: Is told of each step.
    """

    trainer: SparseFeatureMaskerTrainer
    plan: Sequence[Epoch]
    config: TrainingConfig
    training: Split
    validation: Split
    seed: int
    checkpoints: Checkpoints
    logs: pathlib.Path
    progress: Progress

    def run(self) -> History:
        """Trains from the latest checkpoint, or the start, to the end of the plan.

        Returns:
            For each epoch its `stage`, the metrics of `training` and of `validation`, and the
            `seconds` that its passes over the training images took, by phase.

        Raises:
            SfmError: If a loss is no number, or the checkpoints are of another training.
        """
        history = self.checkpoints.restore(self.trainer)
        with _summary_writer(self.logs) as writer:
            for index in range(len(history), len(self.plan)):
                validation = history[-1]["validation"] if history else {}
                history.append(self._run_epoch(index, validation))
                _write_summaries(writer, index, history[-1])
                self.checkpoints.save(self.trainer, history)
        return history

    def _run_epoch(self, index: int, validation: Mapping[str, float]) -> dict:
        epoch = self.plan[index]
        training: dict[str, float] = {}
        seconds: dict[str, float] = {}
        for phase_index, phase in enumerate(epoch.phases):
            start = time.monotonic()
            training.update(self._run_pass(index, phase_index, validation))
            seconds[phase.name.lower()] = round(time.monotonic() - start, 3)
        batches = evaluation_batches(
            self.validation.images, self.validation.labels, self.config.batch_size
        )
        # Keras before 3.13 gives tensors.
        measured = {
            name: float(value)
            for name, value in self.trainer.evaluate(batches, return_dict=True, verbose=0).items()
        }
        check_finite(measured, f"the validation after epoch {index + 1} of {epoch.stage}")
        if "mask_mean" in measured and (warning := describe_collapse(measured)):
            logging.warning("Epoch %d of %s: %s", index + 1, epoch.stage, warning)
        return {
            "stage": epoch.stage,
            "training": training,
            "validation": measured,
            "seconds": seconds,
        }

    def _run_pass(
        self, index: int, phase_index: int, validation: Mapping[str, float]
    ) -> dict[str, float]:
        """Trains one phase of an epoch; returns what it measured."""
        epoch = self.plan[index]
        phase = epoch.phases[phase_index]
        earlier_epochs = self.plan[:index]
        steps = training_steps(len(self.training.labels), self.config.batch_size)
        watch = StepWatch(
            self.progress,
            stage=epoch.stage,
            epoch=index + 1,
            measured=TRAINING_METRICS[phase],
            earlier=steps * (_count_passes(earlier_epochs, epoch.stage) + phase_index),
            total=steps * _count_passes(self.plan, epoch.stage),
            validation=validation,
        )
        batches = training_batches(
            self.training.images,
            self.training.labels,
            batch_size=self.config.batch_size,
            augmentation=self.config.augmentation,
            seed=self.seed,
            epoch=sum(len(earlier.phases) for earlier in earlier_epochs) + phase_index,
        )
        self.trainer.phase.assign(int(phase))
        fitted = self.trainer.fit(batches, callbacks=[watch], verbose=0, shuffle=False)
        return {name: float(fitted.history[name][0]) for name in TRAINING_METRICS[phase]}


def _count_passes(epochs: Sequence[Epoch], stage: str) -> int:
    return sum(len(epoch.phases) for epoch in epochs if epoch.stage == stage)


@contextlib.contextmanager
def _summary_writer(folder: pathlib.Path) -> Iterator[tf.summary.SummaryWriter]:
    writer = tf.summary.create_file_writer(str(folder))
    try:
        yield writer
    finally:
        writer.close()


def _write_summaries(writer: tf.summary.SummaryWriter, index: int, epoch: Mapping) -> None:
    with writer.as_default(step=index + 1):
        for split in ("training", "validation"):
            for name, value in epoch[split].items():
                tf.summary.scalar(f"{split}/{name}", value)
    writer.flush()
