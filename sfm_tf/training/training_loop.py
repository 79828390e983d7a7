"""Carries a plan of epochs out: passes over the images, checkpoints, history and logs."""

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

from sfm_tf.errors import SfmError
from sfm_tf.training.batches import Shares, evaluation_batches, training_batches, training_steps
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
        stage: What the epoch is part of: `pretraining`, `alternation`, `source`, `adversarial` or
            `adversarial_alternation`.
        phases: What is trained, in order.
        sparsity_share: Share of w1 of Eq. 2 that is in force.
    """

    stage: str
    phases: tuple[Phase, ...]
    sparsity_share: float = 1.0


def defence_plan(config: TrainingConfig, first_share: float = 1.0) -> tuple[Epoch, ...]:
    """Returns the epochs of classifier and masker: pre-training (section 5.1), then Algorithm 1.

    Args:
        config: Counts of epochs, and how the parts take turns.
        first_share: Share of w1 at the first of `config.sparsity_ramp_epochs`; it rises evenly.
    """
    pretraining = Epoch("pretraining", (Phase.CLASSIFIER,))
    phases = (Phase.MASKER,) if config.freeze_classifier else _ALTERNATIONS[config.alternation]
    ramp = config.sparsity_ramp_epochs
    shares = [first_share + (1.0 - first_share) * epoch / ramp for epoch in range(ramp)]
    shares += [1.0] * config.epochs
    alternation = tuple(Epoch("alternation", phases, share) for share in shares[: config.epochs])
    return (pretraining,) * config.pretraining_epochs + alternation


def source_plan(config: TrainingConfig) -> tuple[Epoch, ...]:
    """Returns the epochs of the independent model that black-box attacks start from."""
    return (Epoch("source", (Phase.CLASSIFIER,)),) * config.source_epochs


def adversarial_plan(config: TrainingConfig, *, has_masker: bool) -> tuple[Epoch, ...]:
    """Returns the epochs of training on adversarial images, and of pre-training on clean ones."""
    pretraining = Epoch("pretraining", (Phase.CLASSIFIER,))
    adversarial = Epoch("adversarial", (Phase.CLASSIFIER,))
    if has_masker:
        adversarial = Epoch("adversarial_alternation", _ALTERNATIONS[config.alternation])
    return (pretraining,) * config.pretraining_epochs + (adversarial,) * config.adversarial_epochs


def count_classifier_passes(plan: Sequence[Epoch]) -> int:
    """Returns how many passes over the images change the classifier."""
    return sum(phase != Phase.MASKER for epoch in plan for phase in epoch.phases)


def count_passes(plan: Sequence[Epoch], stage: str) -> int:
    """Returns how many passes over the images a stage takes."""
    return sum(len(epoch.phases) for epoch in plan if epoch.stage == stage)


Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with stage, steps done, steps in all and the latest metrics."""

_STEPS_BEHIND = 4

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


class StepWatch:
    """Reports the steps of one pass over the images, in order, a few steps late.

    A device computes steps while earlier ones are looked at; to look at each at once would keep it
    waiting.

    Args:
        progress: Is told of each step.
        stage: Stage of the training.
        epoch: Number of the epoch, for messages.
        earlier: Steps of this stage done before the pass.
        total: Steps of this stage in all.
        validation: Latest figures of the validation images, to be shown beside.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        stage: str,
        epoch: int,
        earlier: int,
        total: int,
        validation: Mapping[str, float],
    ) -> None:
        """Keeps what it is given."""
        self._progress = progress
        self._stage = stage
        self._epoch = epoch
        self._earlier = earlier
        self._total = total
        self._validation = validation
        self._waiting: deque[tuple[int, Mapping[str, Any]]] = deque()

    def add(self, step: int, measured: Mapping[str, Any]) -> None:
        """Takes the figures of the next step and looks at one that is long done.

        Args:
            step: Number in the pass, from 1.
            measured: Scalars by name, that may still be being computed.

        Raises:
            SfmError: If a loss is no number.
        """
        self._waiting.append((step, measured))
        while len(self._waiting) > _STEPS_BEHIND:
            self._look()

    def finish(self) -> None:
        """Looks at all steps that are left.

        Raises:
            SfmError: If a loss is no number.
        """
        while self._waiting:
            self._look()

    def _look(self) -> None:
        step, measured = self._waiting.popleft()
        metrics = {name: float(value) for name, value in measured.items()}
        check_finite(metrics, f"step {step} of epoch {self._epoch} of {self._stage}")
        done = self._earlier + step
        self._progress(self._stage, done, self._total, {**metrics, **self._validation})


_DARK = 0.02
_BRIGHT = 0.98
_EVEN = 0.01
_FORGOTTEN = 0.6
"""Answers that have nothing in common but that none is sure are less than 1 apart: on CIFAR-10 they
were 0.76 and more, and never above 0.34 where the mask kept the class."""


def describe_collapse(metrics: Mapping[str, float], semantic_loss: str = "cosine") -> str:
    """Returns a warning if the mask is all but zeros or ones, or hides the class, else nothing.

    Without a reconstruction term strong enough the mask of zeros is the nearest minimum (Yu et al.
    2022, section 4.3), without a sparsity term strong enough the mask of ones is (section 5.2).

    Args:
        metrics: With `mask_mean`; `mask_spread`, the standard deviation; and `semantic`.
        semantic_loss: What that last one is; only the cosine distance has a largest value.
    """
    mean, spread = metrics["mask_mean"], metrics["mask_spread"]
    figures = f"mean {mean:.3f}, spread {spread:.3f}"
    if spread >= _EVEN or _DARK <= mean <= _BRIGHT:
        if semantic_loss != "cosine" or metrics["semantic"] < _FORGOTTEN:
            return ""
        return (
            f"The mask hides what the classifier looks at (semantic loss {metrics['semantic']:.2f} "
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


MakeBatches = Callable[[Shares], tf.data.Dataset]
"""From the shares of each batch that this process takes to its dataset."""


class Passes:
    """Runs a trainer's steps in its distribution strategy, each compiled once.

    `fit` of Keras 3 does not run on several workers (keras-team/keras issue 20585); a loop over
    `strategy.run` does, so this one serves one device, several and several workers.

    Args:
        trainer: Compiled, and made in the scope of the strategy.
        strategy: Joins the devices.
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

    def train(self, make_batches: MakeBatches) -> Iterator[Mapping[str, Any]]:
        """Takes one training step per batch, of the trainer's phase.

        Args:
            make_batches: Makes the batches.

        Yields:
            After each step what `train_step` returned, scalars of the first replica, without
            waiting for them.
        """
        step = self._training_step()
        for batch in self.strategy.distribute_datasets_from_function(self._shared(make_batches)):
            yield step(batch)

    def evaluate(self, batches: tf.data.Dataset) -> dict[str, float]:
        """Returns the means of what `test_step` measures; every replica measures all images."""
        if self._test_step is None:
            self._test_step = self._compiled(self.trainer.test_step)
        self.reset()
        names: list[str] = []
        for batch in batches:
            names = list(self._test_step(batch))
        return {name: self.means()[name] for name in names}

    def means(self) -> dict[str, float]:
        """Returns the means of all trackers since the last reset, over all replicas."""
        return {name: float(metric.result()) for name, metric in self.trainer.trackers.items()}

    def reset(self) -> None:
        """Begins all means anew."""
        for metric in self.trainer.trackers.values():
            metric.reset_state()

    def _training_step(self) -> Callable:
        key = (self.trainer.phase, self.trainer.is_pretraining)
        if key not in self._training_steps:
            self._training_steps[key] = self._compiled(self.trainer.train_step)
        return self._training_steps[key]

    def _compiled(self, step: Callable) -> Callable:
        def run(batch: Any) -> dict[str, tf.Tensor]:
            measured = self.strategy.run(step, args=(batch,))
            return {
                name: self.strategy.experimental_local_results(value)[0]
                for name, value in measured.items()
            }

        # A partial, because TensorFlow counts compilations by the code of a function.
        return self._compile(functools.partial(run))

    def _shared(self, make_batches: MakeBatches) -> Callable:
        def make(context: tf.distribute.InputContext) -> tf.data.Dataset:
            total = context.num_replicas_in_sync
            count = total // context.num_input_pipelines
            return make_batches(Shares(total, context.input_pipeline_id * count, count))

        return make


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
                "but other workers found another step; give all workers the same --workdir."
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
