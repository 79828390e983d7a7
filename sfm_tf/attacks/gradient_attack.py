"""Attacks that climb the loss along its gradient, as one compiled loop."""

import abc
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_options import FLAG, Option
from sfm_tf.attacks.candidates import (
    Evaluation,
    better,
    evaluate,
    make_candidate,
    worst_candidate,
)
from sfm_tf.attacks.compiled_attack import AttackBatch, BatchOutcome, CompiledAttack
from sfm_tf.attacks.cross_entropy import LOSSES
from sfm_tf.attacks.input_gradients import usable_gradient
from sfm_tf.attacks.norm_balls import BALLS, Ball, sample_points

_IMAGE_AXES = (1, 2, 3)
_View = Callable[[tf.Tensor], tf.Tensor]
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
    gradient_samples: int


class GradientAttack(CompiledAttack):
    """Repeats: step along the gradient of the loss, clip to [0, 1], project on the ball.

    The order and the arithmetic are those of ART's `ProjectedGradientDescentTensorFlowV2`. The
    whole loop is one `tf.function` in which radius, step and number of iterations are tensors.
    The loss is summed over the batch, so that no gradient is divided by the batch size.

    A subclass says how far to step in `_schedule`. One that steers by more than the last gradient
    overrides `_initial_memory` and `_search_direction`; one with another loss, `_losses`; one that
    takes the gradient at something random made of the images, `_views` and `uniforms_per_view`.

    Each gradient is the mean over `gradient_samples` looks at every image, side by side in one
    batch: the expectation over transformation of Athalye et al. 2018 ("Synthesizing robust
    adversarial examples", section 2.1). It takes a model or views that draw anew for each image of
    a batch. A subclass with this option declares it; the others look once.
    """

    options: ClassVar = {**CompiledAttack.options, "random_start": FLAG, "loss": _LOSS}
    attack_params: ClassVar[list[str]] = list(options)
    uniforms_per_view: ClassVar[int] = 0

    random_start: bool
    loss: str
    gradient_samples: int = 1

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
        """Returns the tensors, if any, that the attack carries from step to step.

        It runs before the compiled loop, once per batch: options are to be read here, because the
        loop would keep the value they had when it was compiled.
        """
        del images
        return ()

    def _views(self, images: tf.Tensor, uniforms: tf.Tensor, memory: Any) -> tf.Tensor:
        """Returns what the model is shown of `images` when their gradient is taken.

        Args:
            images: Float32 in [0, 1], shape `(count, height, width, channels)`.
            uniforms: Float32 in [0, 1), shape `(count, uniforms_per_view)`: drawn anew in each
                step for each look, from the image's own seed.
            memory: What `_initial_memory` returned, as the last step left it.
        """
        del uniforms, memory
        return images

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
        mode = _Mode(
            self.norm,
            self.loss,
            self.targeted,
            self.random_start,
            schedule.keep_best,
            self.gradient_samples,
        )
        memory = self._initial_memory(batch.images)
        return self._compiled_climb(batch, limits, memory, mode)

    def _climb(self, batch: AttackBatch, limits: _Limits, memory: Any, mode: _Mode) -> BatchOutcome:
        ball = BALLS[mode.norm]
        start = _random_images(batch, ball, limits.epsilon) if mode.random_start else batch.images
        uniforms = _uniforms(
            batch.seeds, limits.iterations, mode.gradient_samples, self.uniforms_per_view
        )

        def step(done: tf.Tensor, images: tf.Tensor, memory: Any, best: Any, stuck: Any) -> Any:
            view = functools.partial(self._views, uniforms=uniforms[done], memory=memory)
            evaluation, gradient = self._evaluate_with_gradient(images, view, batch, mode)
            best = better(best, make_candidate(images, evaluation, done))
            stuck = tf.where(done == 0, _is_zero(gradient), stuck)
            direction, memory = self._search_direction(gradient, memory)
            moved = images + limits.step_size * ball.steepest(direction)
            change = ball.project(tf.clip_by_value(moved, 0.0, 1.0) - batch.images, limits.epsilon)
            return done + 1, batch.images + change, memory, best, stuck

        nothing = worst_candidate(start)
        stuck = tf.zeros_like(batch.labels, tf.bool)
        _, images, _, best, stuck = tf.while_loop(
            lambda done, *_: done < limits.iterations, step, (0, start, memory, nothing, stuck)
        )
        # Adding the perturbation can round past the ends of [0, 1].
        images = tf.clip_by_value(images, 0.0, 1.0)
        last = make_candidate(images, self._evaluate(images, batch, mode), limits.iterations)
        result = better(best, last) if mode.keep_best else last
        loss = -result.objective if mode.targeted else result.objective
        return BatchOutcome(result.images, loss, result.iterations, stuck)

    def _evaluate(
        self, images: tf.Tensor, batch: AttackBatch, mode: _Mode, view: _View = tf.identity
    ) -> Evaluation:
        logits = self._logits(view(tf.repeat(images, mode.gradient_samples, axis=0)))
        labels = tf.repeat(batch.labels, mode.gradient_samples)
        losses = self._losses(logits, labels)
        return evaluate(losses, logits, labels, mode.targeted, mode.gradient_samples)

    def _evaluate_with_gradient(
        self, images: tf.Tensor, view: _View, batch: AttackBatch, mode: _Mode
    ) -> tuple[Evaluation, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            evaluation = self._evaluate(images, batch, mode, view)
        gradient = tape.gradient(evaluation.objective, images)
        return evaluation, usable_gradient(gradient, batch.mask)


def _random_images(batch: AttackBatch, ball: Ball, epsilon: tf.Tensor) -> tf.Tensor:
    points = epsilon * sample_points(ball, batch.images.shape[1:], batch.seeds)
    return tf.clip_by_value(batch.images + batch.mask * points, 0.0, 1.0)


def _uniforms(seeds: tf.Tensor, iterations: tf.Tensor, samples: int, count: int) -> tf.Tensor:
    """Returns a row of `count` numbers for each step and look, `(iterations, looks, count)`.

    All are drawn before the loop, because drawing for one image after another takes long enough
    not to be done in every step.
    """
    looks = tf.shape(seeds)[0] * samples
    if count == 0:
        return tf.zeros((iterations, looks, 0))
    # Apart from the seeds of the random start.
    seeds = seeds + tf.constant([0, 1 << 29], seeds.dtype)
    numbers = tf.map_fn(
        lambda seed: tf.random.stateless_uniform((iterations, samples, count), seed),
        seeds,
        fn_output_signature=tf.float32,
    )
    return tf.reshape(tf.transpose(numbers, (1, 0, 2, 3)), (iterations, looks, count))


def _is_zero(gradient: tf.Tensor) -> tf.Tensor:
    return tf.reduce_all(gradient == 0.0, axis=_IMAGE_AXES)
