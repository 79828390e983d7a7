"""The training loop: epochs, passes over the images, checkpoints, history and logs.

The loop is not that of Keras: `BackupAndRestore` resumes at an epoch and not within one, and `fit`
of Keras 3 does not run on several workers (keras-team/keras issue 20585).
"""

import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from sfm_tf.artifacts.progress import Progress
from sfm_tf.errors import SfmError
from sfm_tf.training.batches import evaluation_batches, training_batches, training_steps
from sfm_tf.training.checkpoints import Checkpoints, History, Position
from sfm_tf.training.settings import TrainingConfig, TrainingExecutionConfig
from sfm_tf.training.trainer import TRAINING_METRICS, Phase, SparseFeatureMaskerTrainer
from sfm_tf.training.training_logs import TrainingLogs

_ALTERNATIONS = {
    "epoch": (Phase.CLASSIFIER, Phase.MASKER),
    "step": (Phase.BOTH,),
}


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch: a pass over the training images in each of its phases.

    Attributes:
        stage: `pretraining`, `alternation`, `source`, `adversarial` or `adversarial_alternation`.
        phases: Which part is trained in each pass.
        sparsity_share: Share of w1 of Eq. 2 that is in force.
    """

    stage: str
    phases: tuple[Phase, ...]
    sparsity_share: float = 1.0


def defence_schedule(config: TrainingConfig, first_share: float = 1.0) -> tuple[Epoch, ...]:
    """Returns the epochs of classifier and masker: pre-training (section 5.1), then Algorithm 1.

    Args:
        config: Numbers of epochs, and how the parts take turns.
        first_share: Share of w1 in the first of `config.sparsity_ramp_epochs`; it rises evenly.
    """
    pretraining = Epoch("pretraining", (Phase.CLASSIFIER,))
    phases = (Phase.MASKER,) if config.freeze_classifier else _ALTERNATIONS[config.alternation]
    ramp = config.sparsity_ramp_epochs
    shares = [first_share + (1.0 - first_share) * epoch / ramp for epoch in range(ramp)]
    shares += [1.0] * config.epochs
    alternation = tuple(Epoch("alternation", phases, share) for share in shares[: config.epochs])
    return (pretraining,) * config.pretraining_epochs + alternation


def source_schedule(config: TrainingConfig) -> tuple[Epoch, ...]:
    """Returns the epochs of the independent source model of the black-box attacks."""
    return (Epoch("source", (Phase.CLASSIFIER,)),) * config.source_epochs


def adversarial_schedule(config: TrainingConfig, *, has_masker: bool) -> tuple[Epoch, ...]:
    """Returns the epochs of pre-training on clean images, then of adversarial training."""
    pretraining = Epoch("pretraining", (Phase.CLASSIFIER,))
    adversarial = Epoch("adversarial", (Phase.CLASSIFIER,))
    if has_masker:
        adversarial = Epoch("adversarial_alternation", _ALTERNATIONS[config.alternation])
    return (pretraining,) * config.pretraining_epochs + (adversarial,) * config.adversarial_epochs


def count_classifier_passes(schedule: Sequence[Epoch]) -> int:
    """Returns the number of passes over the images that update the classifier."""
    return sum(phase != Phase.MASKER for epoch in schedule for phase in epoch.phases)


def count_passes(schedule: Sequence[Epoch], stage: str) -> int:
    """Returns the number of passes over the images in a stage."""
    return sum(len(epoch.phases) for epoch in schedule if epoch.stage == stage)


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, float32 in [0, 1] of shape `(count, height, width, channels)`, and their labels."""

    images: np.ndarray | tf.Tensor
    labels: np.ndarray | tf.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """The training of one `SparseFeatureMaskerTrainer`, resumable at any checkpoint.

    Attributes:
        steps: The compiled steps of the trainer.
        schedule: The epochs.
        config: Batch size and augmentation.
        execution: How often to save and what to show.
        training: Images to train on.
        validation: Images to measure on after each epoch.
        seed: Seed of order and augmentation of the training images.
        checkpoints: Where the state is saved and resumed from.
        logs: The TensorBoard logs.
        progress: Called after each step.
    """

    steps: "CompiledSteps"
    schedule: tuple[Epoch, ...]
    config: TrainingConfig
    execution: TrainingExecutionConfig
    training: Split
    validation: Split
    seed: int
    checkpoints: Checkpoints
    logs: TrainingLogs
    progress: Progress

    def run(self) -> History:
        """Trains from the latest checkpoint, or the start, to the end of the schedule.

        Returns:
            For each epoch its `stage`, the metrics of `training` and of `validation`, and the
            `seconds` that its passes over the training images took, by phase.

        Raises:
            SfmError: If a loss is not finite, the mask collapses and `fail_on_collapse` is set, or
                the checkpoints belong to another training.
        """
        position = self.checkpoints.restore(self.steps.trainer.state)
        self._check_agreement(position)
        with self.logs:
            while len(position.history) < len(self.schedule):
                position = self._run_epoch(position)
        if self.config.kept_epoch == "best":
            self.checkpoints.restore_best(self.steps.trainer.state)
        return position.history

    def _run_epoch(self, position: Position) -> Position:
        epoch, number = self.schedule[len(position.history)], len(position.history) + 1
        self.steps.trainer.sparsity_share.assign(epoch.sparsity_share)
        while position.passes < len(epoch.phases):
            position = self._run_pass(position)
        finished = {
            "stage": epoch.stage,
            "training": position.training,
            "validation": self._validate(epoch, number),
            "seconds": {name: round(value, 3) for name, value in position.seconds.items()},
        }
        position = Position([*position.history, finished])
        self.logs.write_epoch(number, finished)
        shown = self.validation.images[: self.execution.mask_images]
        self.logs.write_masks(number, self.steps.trainer.defended, shown)
        self.checkpoints.save(self.steps.trainer.state, position)
        return position

    def _run_pass(self, position: Position) -> Position:
        """Trains one phase of an epoch; returns the position after it."""
        trainer, epoch = self.steps.trainer, self.schedule[len(position.history)]
        trainer.phase = phase = epoch.phases[position.passes]
        trainer.is_pretraining = epoch.stage == "pretraining"
        if position.step == 0:
            self.steps.reset()
        start, reporter = time.monotonic(), self._reporter(position)

        def at(step: int) -> Position:
            spent = position.seconds.get(phase.name.lower(), 0.0) + time.monotonic() - start
            seconds = {**position.seconds, phase.name.lower(): spent}
            return dataclasses.replace(position, step=step, seconds=seconds)

        batches = functools.partial(self._batches, position)
        for step, measured in enumerate(self.steps.train(batches), position.step + 1):
            reporter.add(step, measured)
            self.logs.profile_step(len(position.history) + 1)
            if self._is_checkpoint_due(step):
                reporter.flush()
                self.checkpoints.save(trainer.state, at(step))
        reporter.flush()
        means = self.steps.means()
        training = {name: means[name] for name in TRAINING_METRICS[phase]}
        return dataclasses.replace(
            at(0), passes=position.passes + 1, training={**position.training, **training}
        )

    def _is_checkpoint_due(self, step: int) -> bool:
        every = self.execution.checkpoint_steps
        return every > 0 and step % every == 0 and step < self._steps_per_pass

    @property
    def _steps_per_pass(self) -> int:
        return training_steps(len(self.training.labels), self.config.batch_size)

    def _batches(self, position: Position, context: tf.distribute.InputContext) -> tf.data.Dataset:
        earlier = self.schedule[: len(position.history)]
        return training_batches(
            self.training.images,
            self.training.labels,
            batch_size=self.config.batch_size,
            augmentation=self.config.augmentation,
            seed=self.seed,
            epoch=sum(len(epoch.phases) for epoch in earlier) + position.passes,
            first_step=position.step,
            context=context,
        )

    def _reporter(self, position: Position) -> "StepReporter":
        """Returns what checks the losses of the next pass and reports its steps."""
        number, stage = len(position.history) + 1, self.schedule[len(position.history)].stage
        earlier = count_passes(self.schedule[: len(position.history)], stage) + position.passes
        done = self._steps_per_pass * earlier
        total = self._steps_per_pass * count_passes(self.schedule, stage)
        validation = position.history[-1]["validation"] if position.history else {}

        def report(step: int, metrics: Mapping[str, float]) -> None:
            check_finite(metrics, f"step {step} of epoch {number} of {stage}")
            self.progress(stage, done + step, total, {**metrics, **validation})

        return StepReporter(report)

    def _validate(self, epoch: Epoch, number: int) -> dict[str, float]:
        images, labels = self.validation.images, self.validation.labels
        measured = self.steps.evaluate(evaluation_batches(images, labels, self.config.batch_size))
        check_finite(measured, f"the validation after epoch {number} of {epoch.stage}")
        if "mask_mean" not in measured or epoch.stage == "pretraining":
            return measured
        if warning := describe_collapse(measured, self.config.semantic_loss):
            warning = f"Epoch {number} of {epoch.stage}: {warning}"
            if self.execution.fail_on_collapse:
                raise SfmError(warning)
            logging.warning(warning)
        return measured

    def _check_agreement(self, position: Position) -> None:
        """Raises `SfmError` if workers would resume from different checkpoints."""
        strategy = self.steps.strategy
        if strategy.num_replicas_in_sync == 1:
            return
        earlier = self.schedule[: len(position.history)]
        passes = sum(len(epoch.phases) for epoch in earlier) + position.passes
        step = self._steps_per_pass * passes + position.step
        found = tf.function(lambda: strategy.run(tf.constant, args=(step,)))()
        if int(strategy.reduce("SUM", found, axis=None)) != step * strategy.num_replicas_in_sync:
            raise SfmError(
                f"This worker found checkpoints up to step {step} in {self.checkpoints.folder}, "
                "but other workers found another step; give all workers the same --workdir."
            )


class CompiledSteps:
    """The training and test steps of a trainer, compiled once for one or several devices.

    Args:
        trainer: Compiled, and made in the scope of the strategy.
        strategy: Distributes the batches over the devices.
        jit_compile: Whether XLA compiles the steps.
    """

    def __init__(
        self,
        trainer: SparseFeatureMaskerTrainer,
        strategy: tf.distribute.Strategy,
        *,
        jit_compile: bool = False,
    ) -> None:
        """Compiles nothing yet."""
        self.trainer = trainer
        self.strategy = strategy
        self._compile = functools.partial(tf.function, autograph=False, jit_compile=jit_compile)
        self._training_steps: dict[tuple[Phase, bool], Callable] = {}
        self._test_step: Callable | None = None

    def train(
        self, make_batches: Callable[[tf.distribute.InputContext], tf.data.Dataset]
    ) -> Iterator[Mapping[str, Any]]:
        """Takes one training step per batch, in the trainer's phase.

        Args:
            make_batches: Returns the parts of each batch that belong to this process's devices.

        Yields:
            After each step the scalars that `train_step` returned on the first device, perhaps
            before they are computed.
        """
        key = (self.trainer.phase, self.trainer.is_pretraining)
        if key not in self._training_steps:
            self._training_steps[key] = self._compiled(self.trainer.train_step)
        for batch in self.strategy.distribute_datasets_from_function(make_batches):
            yield self._training_steps[key](batch)

    def evaluate(self, batches: tf.data.Dataset) -> dict[str, float]:
        """Returns the means of what `test_step` measures; every device measures all images."""
        if self._test_step is None:
            self._test_step = self._compiled(self.trainer.test_step)
        self.reset()
        names: list[str] = []
        for batch in batches:
            names = list(self._test_step(batch))
        means = self.means()
        return {name: means[name] for name in names}

    def means(self) -> dict[str, float]:
        """Returns the means of all metrics since the last reset, over all devices."""
        return {name: float(metric.result()) for name, metric in self.trainer.trackers.items()}

    def reset(self) -> None:
        """Starts all means again."""
        for metric in self.trainer.trackers.values():
            metric.reset_state()

    def _compiled(self, step: Callable) -> Callable:
        def run(batch: Any) -> dict[str, tf.Tensor]:
            measured = self.strategy.run(step, args=(batch,))
            return {
                name: self.strategy.experimental_local_results(value)[0]
                for name, value in measured.items()
            }

        # A partial, because TensorFlow counts compilations by the code of a function.
        return self._compile(functools.partial(run))


_STEPS_BEHIND = 4


class StepReporter:
    """Reports steps in order but a few steps late, so that a device need not wait for it.

    Args:
        report: Called with the number of a step and its metrics.
    """

    def __init__(self, report: Callable[[int, Mapping[str, float]], None]) -> None:
        """Reports nothing yet."""
        self._report = report
        self._waiting: deque[tuple[int, Mapping[str, Any]]] = deque()

    def add(self, step: int, measured: Mapping[str, Any]) -> None:
        """Takes the scalars of the next step, perhaps before they are computed."""
        self._waiting.append((step, measured))
        self._report_all_but(_STEPS_BEHIND)

    def flush(self) -> None:
        """Reports all steps that are left."""
        self._report_all_but(0)

    def _report_all_but(self, count: int) -> None:
        while len(self._waiting) > count:
            step, measured = self._waiting.popleft()
            self._report(step, {name: float(value) for name, value in measured.items()})


_REMEDIES = {
    "classification_loss": "lower classifier_learning_rate",
    "mask_loss": "lower masker_learning_rate or the weights of its loss",
}


def check_finite(metrics: Mapping[str, float], place: str) -> None:
    """Raises if a loss is infinite or not a number.

    Args:
        metrics: Values by name.
        place: Where they were measured, for the message.

    Raises:
        SfmError: Names the loss and what to change.
    """
    for name, remedy in _REMEDIES.items():
        if not math.isfinite(metrics.get(name, 0.0)):
            raise SfmError(
                f"{name} became {metrics[name]} in {place}; {remedy}, or set "
                "mixed_precision to float32."
            )


_DARK = 0.02
_BRIGHT = 0.98
_EVEN = 0.01
_HIDDEN_CLASS = 0.6
"""Semantic loss above which the mask hides the class: on CIFAR-10 it was at least 0.76 where the
answers had nothing in common, and at most 0.34 where the mask kept the class."""


def describe_collapse(metrics: Mapping[str, float], semantic_loss: str = "cosine") -> str:
    """Returns a warning if the mask is almost all zeros or ones, or hides the class; else nothing.

    Without a reconstruction term strong enough the mask of zeros is the nearest minimum (Yu et al.
    2022, section 4.3), without a sparsity term strong enough the mask of ones is (section 5.2).

    Args:
        metrics: With `mask_mean`, `mask_spread` (its standard deviation) and `semantic`.
        semantic_loss: Kind of the semantic loss; only the cosine distance has a largest value.
    """
    mean, spread = metrics["mask_mean"], metrics["mask_spread"]
    figures = f"mean {mean:.3f}, spread {spread:.3f}"
    if spread >= _EVEN or _DARK <= mean <= _BRIGHT:
        if semantic_loss != "cosine" or metrics["semantic"] < _HIDDEN_CLASS:
            return ""
        return (
            f"The mask hides what the classifier needs (semantic loss {metrics['semantic']:.2f} "
            f"of 1, {figures}): raise semantic_weight or lower sparsity_weight."
        )
    if mean < _DARK:
        return (
            f"The mask collapsed to zeros ({figures}): raise semantic_weight or lower "
            "sparsity_weight."
        )
    return (
        f"The mask collapsed to ones ({figures}): raise sparsity_weight or lower "
        "reconstruction_weight."
    )
