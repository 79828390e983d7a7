"""Carries a plan of epochs out: passes over the images, checkpoints, history and logs."""

import dataclasses
import time

import numpy as np
import tensorflow as tf
from absl import logging

from sfm_tf.errors import SfmError
from sfm_tf.training.batches import Shares, evaluation_batches, training_batches, training_steps
from sfm_tf.training.checkpoints import Checkpoints, History, Position
from sfm_tf.training.mask_collapse import describe_collapse
from sfm_tf.training.passes import Passes
from sfm_tf.training.phases import TRAINING_METRICS
from sfm_tf.training.plan import Epoch, count_passes
from sfm_tf.training.step_watch import Progress, StepWatch, check_finite
from sfm_tf.training.training_logs import TrainingLogs
from sfm_tf.training_config import TrainingConfig, TrainingExecutionConfig


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, float32 in [0, 1] of shape `(count, height, width, channels)`, and their labels."""

    images: np.ndarray | tf.Tensor
    labels: np.ndarray | tf.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitting:
    """The training of one `SparseFeatureMaskerTrainer` by a plan.

    Attributes:
        passes: Of the trainer, which is compiled.
        plan: Its epochs.
        config: Batch size and augmentation.
        execution: How often to save and what to show.
        training: Images to train on.
        validation: Images to measure on after each epoch.
        seed: Seed of order and augmentation of the training images.
        checkpoints: Where the state is saved and resumed from.
        logs: The TensorBoard logs.
        progress: Is told of each step.
    """

    passes: Passes
    plan: tuple[Epoch, ...]
    config: TrainingConfig
    execution: TrainingExecutionConfig
    training: Split
    validation: Split
    seed: int
    checkpoints: Checkpoints
    logs: TrainingLogs
    progress: Progress

    def run(self) -> History:
        """Trains from the latest checkpoint, or the start, to the end of the plan.

        Returns:
            For each epoch its `stage`, the metrics of `training` and of `validation`, and the
            `seconds` that its passes over the training images took, by phase.

        Raises:
            SfmError: If a loss is no number, the mask collapses and that is to be a failure, or the
                checkpoints are of another training.
        """
        position = self.checkpoints.restore(self.passes.trainer)
        self._check_agreement(position)
        with self.logs:
            while len(position.history) < len(self.plan):
                position = self._run_epoch(position)
        if self.config.kept_epoch == "best":
            self.checkpoints.restore_best(self.passes.trainer)
        return position.history

    def _check_agreement(self, position: Position) -> None:
        """Raises `SfmError` if workers would go on from different checkpoints."""
        strategy = self.passes.strategy
        if strategy.num_replicas_in_sync == 1:
            return
        earlier = self.plan[: len(position.history)]
        passes = sum(len(epoch.phases) for epoch in earlier) + position.passes
        steps = self._steps_per_pass * passes + position.step
        found = tf.function(lambda: strategy.run(tf.constant, args=(steps,)))()
        if int(strategy.reduce("SUM", found, axis=None)) != steps * strategy.num_replicas_in_sync:
            raise SfmError(
                f"This worker found checkpoints up to step {steps} in {self.checkpoints.folder}, "
                "others up to another; give all the same --workdir."
            )

    def _run_epoch(self, position: Position) -> Position:
        epoch = self.plan[len(position.history)]
        self.passes.trainer.sparsity_share.assign(epoch.sparsity_share)
        while position.passes < len(epoch.phases):
            position = self._run_pass(position)
        finished = {
            "stage": epoch.stage,
            "training": position.training,
            "validation": self._validate(epoch, len(position.history) + 1),
            "seconds": {name: round(value, 3) for name, value in position.seconds.items()},
        }
        position = Position([*position.history, finished])
        self._log(position)
        self.checkpoints.save(self.passes.trainer, position)
        return position

    def _run_pass(self, position: Position) -> Position:
        """Trains one phase of an epoch; returns where that leads."""
        trainer, epoch = self.passes.trainer, self.plan[len(position.history)]
        trainer.phase = phase = epoch.phases[position.passes]
        trainer.is_pretraining = epoch.stage == "pretraining"
        if position.step == 0:
            self.passes.reset()
        start, watch = time.monotonic(), self._watch(position)

        def at(step: int) -> Position:
            spent = position.seconds.get(phase.name.lower(), 0.0) + time.monotonic() - start
            seconds = {**position.seconds, phase.name.lower(): spent}
            return dataclasses.replace(position, step=step, seconds=seconds)

        steps = self.passes.train(lambda shares: self._batches(position, shares))
        for step, measured in enumerate(steps, position.step + 1):
            watch.add(step, measured)
            self.logs.profile_step(len(position.history) + 1)
            if self._is_due(step):
                watch.finish()
                self.checkpoints.save(trainer, at(step))
        watch.finish()
        means = self.passes.means()
        training = {name: means[name] for name in TRAINING_METRICS[phase]}
        return dataclasses.replace(
            at(0), passes=position.passes + 1, training={**position.training, **training}
        )

    def _is_due(self, step: int) -> bool:
        every = self.execution.checkpoint_steps
        return every > 0 and step % every == 0 and step < self._steps_per_pass

    @property
    def _steps_per_pass(self) -> int:
        return training_steps(len(self.training.labels), self.config.batch_size)

    def _watch(self, position: Position) -> StepWatch:
        epoch, earlier = self.plan[len(position.history)], self.plan[: len(position.history)]
        passes = count_passes(earlier, epoch.stage) + position.passes
        return StepWatch(
            self.progress,
            stage=epoch.stage,
            epoch=len(position.history) + 1,
            earlier=self._steps_per_pass * passes,
            total=self._steps_per_pass * count_passes(self.plan, epoch.stage),
            validation=position.history[-1]["validation"] if position.history else {},
        )

    def _batches(self, position: Position, shares: Shares) -> tf.data.Dataset:
        earlier = self.plan[: len(position.history)]
        return training_batches(
            self.training.images,
            self.training.labels,
            batch_size=self.config.batch_size,
            augmentation=self.config.augmentation,
            seed=self.seed,
            epoch=sum(len(epoch.phases) for epoch in earlier) + position.passes,
            first_step=position.step,
            shares=shares,
        )

    def _validate(self, epoch: Epoch, number: int) -> dict[str, float]:
        measured = self.passes.evaluate(
            evaluation_batches(
                self.validation.images, self.validation.labels, self.config.batch_size
            )
        )
        check_finite(measured, f"the validation after epoch {number} of {epoch.stage}")
        if "mask_mean" not in measured or epoch.stage == "pretraining":
            return measured
        if warning := describe_collapse(measured, self.config.semantic_loss):
            warning = f"Epoch {number} of {epoch.stage}: {warning}"
            if self.execution.fail_on_collapse:
                raise SfmError(warning)
            logging.warning(warning)
        return measured

    def _log(self, position: Position) -> None:
        number = len(position.history)
        self.logs.write_epoch(number, position.history[-1])
        shown = self.validation.images[: self.execution.mask_images]
        self.logs.write_masks(number, self.passes.trainer.defended, shown)
