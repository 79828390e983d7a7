"""Attacks that climb the loss along its gradient, as one compiled loop."""

import abc
import functools
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_options import FLAG, Option
from sfm_tf.attacks.compiled_attack import AttackBatch, BatchOutcome, CompiledAttack
from sfm_tf.attacks.cross_entropy import LOSSES
from sfm_tf.attacks.norm_balls import BALLS, Ball, sample_points
from sfm_tf.errors import SfmError

_IMAGE_AXES = (1, 2, 3)
_LOSS = Option(
    lambda value: isinstance(value, str) and value in LOSSES, f"one of {', '.join(LOSSES)}"
)


class Schedule(NamedTuple):
    """How far and how often an attack steps.

    Attributes:
        step_size: Norm of one step, in the units of the pixels.
        iterations: Number of steps.
        keep_best: Whether to return each image's most damaging iterate in place of the last.
    """

    step_size: float
    iterations: int
    keep_best: bool


class _Limits(NamedTuple):
    """What can change without compiling anew: scalar tensors."""

    epsilon: tf.Tensor
    step_size: tf.Tensor
    iterations: tf.Tensor


class _Mode(NamedTuple):
    """What the compiled loop is specialised for."""

    norm: float | str
    loss: str
    targeted: bool
    random_start: bool
    keep_best: bool


class _Evaluation(NamedTuple):
    """The attacked model at some images; `objective` is what the attack climbs."""

    objective: tf.Tensor
    fooled: tf.Tensor


class _Candidate(NamedTuple):
    """Images worth returning, each with the iteration it was reached in."""

    images: tf.Tensor
    objective: tf.Tensor
    fooled: tf.Tensor
    iterations: tf.Tensor


class GradientAttack(CompiledAttack):
    """Repeats: step along the gradient of the loss, clip to [0, 1], project on the ball.

    The order and the arithmetic are those of ART's `ProjectedGradientDescentTensorFlowV2`. The
    whole loop is one `tf.function` in which radius, step and number of iterations are tensors.
    The loss is summed over the batch, so that no gradient is divided by the batch size.

    A subclass says how far to step in `_schedule`. One that steers by more than the last gradient
    overrides `_initial_memory` and `_search_direction`; one with another loss, `_losses`.
    """

    options: ClassVar = {**CompiledAttack.options, "random_start": FLAG, "loss": _LOSS}
    attack_params: ClassVar[list[str]] = list(options)

    random_start: bool
    loss: str

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Prepares the loop, which is compiled at the first batch."""
        super().__init__(estimator, **options)
        # A partial, because TensorFlow counts compilations by the code of a function and would warn
        # of too many when a program attacks many models.
        self._compiled_climb = tf.function(functools.partial(self._climb), autograph=False)

    @abc.abstractmethod
    def _schedule(self) -> Schedule:
        """Returns the steps to take, from the options as they are now."""

    def _initial_memory(self, images: tf.Tensor) -> Any:
        """Returns the tensors, if any, that the attack carries from step to step."""
        del images
        return ()

    def _search_direction(self, gradient: tf.Tensor, memory: Any) -> tuple[tf.Tensor, Any]:
        """Returns what to step along, given the gradient of the objective, and the new memory."""
        return gradient, memory

    def _losses(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each image, float32 of shape `(batch,)`."""
        return LOSSES[self.loss](logits, labels)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        schedule = self._schedule()
        limits = _Limits(
            tf.constant(self.epsilon, tf.float32),
            tf.constant(schedule.step_size, tf.float32),
            tf.constant(schedule.iterations, tf.int32),
        )
        mode = _Mode(self.norm, self.loss, self.targeted, self.random_start, schedule.keep_best)
        return self._compiled_climb(batch, limits, mode)

    def _climb(self, batch: AttackBatch, limits: _Limits, mode: _Mode) -> BatchOutcome:
        ball = BALLS[mode.norm]
        start = _random_images(batch, ball, limits.epsilon) if mode.random_start else batch.images

        def step(done: tf.Tensor, images: tf.Tensor, memory: Any, best: Any, stuck: Any) -> Any:
            evaluation, gradient = self._evaluate_with_gradient(images, batch, mode.targeted)
            best = _better(best, _candidate(images, evaluation, done))
            stuck = tf.where(done == 0, _is_zero(gradient), stuck)
            direction, memory = self._search_direction(gradient, memory)
            moved = images + limits.step_size * ball.steepest(direction)
            change = tf.clip_by_value(moved, 0.0, 1.0) - batch.images
            return (
                done + 1,
                batch.images + ball.project(change, limits.epsilon),
                memory,
                best,
                stuck,
            )

        nothing = _candidate(start, _worst_evaluation(batch.labels), tf.constant(0))
        _, images, _, best, stuck = tf.while_loop(
            lambda done, *_: done < limits.iterations,
            step,
            (0, start, self._initial_memory(start), nothing, tf.zeros_like(nothing.fooled)),
        )
        # Adding the perturbation can round past the ends of [0, 1].
        images = tf.clip_by_value(images, 0.0, 1.0)
        last = _candidate(images, self._evaluate(images, batch, mode.targeted), limits.iterations)
        result = _better(best, last) if mode.keep_best else last
        loss = -result.objective if mode.targeted else result.objective
        return BatchOutcome(result.images, loss, result.iterations, stuck)

    def _evaluate(self, images: tf.Tensor, batch: AttackBatch, targeted: bool) -> _Evaluation:
        logits = self._logits(images)
        losses = self._losses(logits, batch.labels)
        hit = tf.argmax(logits, axis=1) == batch.labels
        return _Evaluation(-losses, hit) if targeted else _Evaluation(losses, ~hit)

    def _evaluate_with_gradient(
        self, images: tf.Tensor, batch: AttackBatch, targeted: bool
    ) -> tuple[_Evaluation, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            evaluation = self._evaluate(images, batch, targeted)
        gradient = tape.gradient(evaluation.objective, images)
        if gradient is None:
            raise SfmError(
                "The model has no gradient with respect to its input; give each operation without "
                "one, such as rounding, a surrogate gradient."
            )
        usable = tf.math.is_finite(gradient) & (batch.mask != 0.0)
        return evaluation, tf.where(usable, gradient, 0.0)


def _random_images(batch: AttackBatch, ball: Ball, epsilon: tf.Tensor) -> tf.Tensor:
    points = epsilon * sample_points(ball, batch.images.shape[1:], batch.seeds)
    return tf.clip_by_value(batch.images + batch.mask * points, 0.0, 1.0)


def _is_zero(gradient: tf.Tensor) -> tf.Tensor:
    return tf.reduce_all(gradient == 0.0, axis=_IMAGE_AXES)


def _worst_evaluation(labels: tf.Tensor) -> _Evaluation:
    shape = tf.shape(labels)
    return _Evaluation(tf.fill(shape, -float("inf")), tf.fill(shape, False))


def _candidate(images: tf.Tensor, evaluation: _Evaluation, iteration: tf.Tensor) -> _Candidate:
    iterations = tf.fill(tf.shape(evaluation.objective), iteration)
    return _Candidate(images, evaluation.objective, evaluation.fooled, iterations)


def _better(first: _Candidate, second: _Candidate) -> _Candidate:
    """Picks per image: one that fools the model, then the higher objective, then the first."""
    fools_alone = second.fooled & ~first.fooled
    climbs = (second.fooled == first.fooled) & (second.objective > first.objective)
    take_second = fools_alone | climbs
    images = tf.where(take_second[:, None, None, None], second.images, first.images)
    rest = (tf.where(take_second, b, a) for a, b in zip(first[1:], second[1:], strict=True))
    return _Candidate(images, *rest)
