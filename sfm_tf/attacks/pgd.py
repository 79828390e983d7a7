"""Projected gradient descent."""

import abc
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    COUNT,
    FLAG,
    POSITIVE,
    AttackBatch,
    BatchOutcome,
    Candidate,
    CompiledAttack,
    Evaluation,
    Option,
    better,
    bucket_size,
    choose,
    evaluate,
    fill_up,
    make_candidate,
    put,
    take,
    usable_gradient,
    worst_candidate,
)
from sfm_tf.attacks.norm_balls import BALLS, Ball, sample_points
from sfm_tf.attacks.seeds import numbered, uniforms_by_step
from sfm_tf.models.logit_losses import LOSSES

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
        stop_when_fooled: Whether to return an image's first iterate that fools the model, if any.
    """

    step_size: float
    iterations: int
    keep_best: bool
    stop_when_fooled: bool = False


class Limits(NamedTuple):
    """What can change without compiling anew: scalar tensors.

    `run` tells apart several runs, each with random numbers of its own. With `stop_when_fooled` the
    loop pauses as soon as no more than `enough` images are still to be fooled.
    """

    epsilon: tf.Tensor
    step_size: tf.Tensor
    iterations: tf.Tensor
    random_start: tf.Tensor
    run: tf.Tensor
    enough: tf.Tensor


class Ascent(NamedTuple):
    """How far the attack of a batch has come.

    Attributes:
        done: Int32 scalar: number of steps taken.
        images: Float32 `(batch, height, width, channels)`: the iterates.
        memory: What the attack carries from step to step.
        best: What to return, once all steps are done.
        is_stuck: Bool `(batch,)`: whether the first gradient was zero.
    """

    done: tf.Tensor
    images: tf.Tensor
    memory: Any
    best: Candidate
    is_stuck: tf.Tensor


class _Mode(NamedTuple):
    """What the compiled loop is specialised for."""

    norm: float | str
    loss: str
    targeted: bool
    keep_best: bool
    stop_when_fooled: bool
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

    options: ClassVar[Mapping[str, Option]] = {
        **CompiledAttack.options,
        "random_start": FLAG,
        "loss": _LOSS,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **CompiledAttack.defaults,
        "random_start": False,
        "loss": "cross_entropy",
    }
    uniforms_per_view: ClassVar[int] = 0

    random_start: bool
    loss: str
    gradient_samples: int = 1

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Sets the options and prepares the loop, which is compiled at the first batch."""
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
        loop would keep the value they had when it was compiled. A tensor is a scalar or has a row
        for each image.
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
        ascent = self._compiled_climb(batch, self._begin(batch), self._limits(), self._mode())
        return self._outcome(ascent.best, ascent.is_stuck)

    def _begin(self, batch: AttackBatch) -> Ascent:
        memory = self._initial_memory(batch.images)
        nobody = tf.zeros_like(batch.labels, tf.bool)
        return Ascent(tf.constant(0), batch.images, memory, worst_candidate(batch.images), nobody)

    def _limits(self, run: int = 0) -> Limits:
        schedule = self._schedule()
        return Limits(
            tf.constant(self.epsilon, tf.float32),
            tf.constant(schedule.step_size, tf.float32),
            tf.constant(schedule.iterations, tf.int32),
            # A second run from the image itself would be the first one again.
            tf.constant(self.random_start or run > 0),
            tf.constant(run),
            tf.constant(0),
        )

    def _mode(self) -> _Mode:
        _, _, *keeps = self._schedule()
        return _Mode(self.norm, self.loss, self.targeted, *keeps, self.gradient_samples)

    def _outcome(self, best: Candidate, is_stuck: tf.Tensor) -> BatchOutcome:
        loss = -best.objective if self.targeted else best.objective
        return BatchOutcome(best.images, loss, best.iterations, is_stuck)

    def _climb(self, batch: AttackBatch, ascent: Ascent, limits: Limits, mode: _Mode) -> Ascent:
        batch = batch._replace(seeds=numbered(batch.seeds, limits.run))
        images = tf.cond(
            limits.random_start & (ascent.done == 0),
            lambda: _random_images(batch, BALLS[mode.norm], limits.epsilon),
            lambda: ascent.images,
        )
        looks = (mode.gradient_samples, self.uniforms_per_view)
        uniforms = uniforms_by_step(batch.seeds, limits.iterations, *looks)

        def is_unfinished(ascent: Ascent) -> tf.Tensor:
            is_left = ascent.done < limits.iterations
            enough = _count_unfooled(ascent.best) <= limits.enough
            return is_left & ~enough if mode.stop_when_fooled else is_left

        def step(ascent: Ascent) -> tuple[Ascent]:
            return (self._step(ascent, uniforms[ascent.done], batch, limits, mode),)

        (ascent,) = tf.while_loop(is_unfinished, step, (ascent._replace(images=images),))
        return tf.cond(
            ascent.done == limits.iterations,
            lambda: ascent._replace(best=self._result(ascent, batch, mode)),
            lambda: ascent,
        )

    def _step(
        self, ascent: Ascent, uniforms: tf.Tensor, batch: AttackBatch, limits: Limits, mode: _Mode
    ) -> Ascent:
        done, images, memory, best, is_stuck = ascent
        view = functools.partial(self._views, uniforms=uniforms, memory=memory)
        evaluation, gradient = self._evaluate_with_gradient(images, view, batch, mode)
        if mode.keep_best or mode.stop_when_fooled:
            if self.uniforms_per_view:
                # What counts is the model at the images, not at the views.
                evaluation = self._evaluate(images, batch, mode)
            best = _best(best, make_candidate(images, evaluation, done), mode)
        is_stuck = tf.cond(done == 0, lambda: _is_zero(gradient), lambda: is_stuck)
        direction, memory = self._search_direction(gradient, memory)
        ball = BALLS[mode.norm]
        moved = images + limits.step_size * ball.steepest(direction)
        change = ball.project(tf.clip_by_value(moved, 0.0, 1.0) - batch.images, limits.epsilon)
        return Ascent(done + 1, batch.images + change, memory, best, is_stuck)

    def _result(self, ascent: Ascent, batch: AttackBatch, mode: _Mode) -> Candidate:
        # Adding the perturbation can round past the ends of [0, 1].
        images = tf.clip_by_value(ascent.images, 0.0, 1.0)
        last = make_candidate(images, self._evaluate(images, batch, mode), ascent.done)
        if mode.keep_best:
            return _best(ascent.best, last, mode)
        is_fooled = ascent.best.fooled == 1.0
        return choose(is_fooled, ascent.best, last) if mode.stop_when_fooled else last

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


def _is_zero(gradient: tf.Tensor) -> tf.Tensor:
    return tf.reduce_all(gradient == 0.0, axis=_IMAGE_AXES)


def _count_unfooled(best: Candidate) -> tf.Tensor:
    return tf.math.count_nonzero(best.fooled < 1.0, dtype=tf.int32)


def _best(best: Candidate, candidate: Candidate, mode: _Mode) -> Candidate:
    if mode.stop_when_fooled:
        # An image that fools the model in every look is not followed any further.
        objective = tf.where(best.fooled < 1.0, candidate.objective, -math.inf)
        candidate = candidate._replace(objective=objective)
    return better(best, candidate)


class IteratedGradientAttack(GradientAttack):
    """A gradient attack of many steps of one size; see there for how a subclass steers it.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        step_size: Norm of one step, in the units of the pixels.
        iterations: Number of steps.
        targeted: Whether labels are classes to reach rather than to leave.
        random_start: Whether to start at a random point of the ball.
        keep_best: Whether to return, per image, the iterate of the highest loss among those that
            fool the model, or among all where none does, in place of the last iterate.
        restarts: Number of runs, of which each image keeps the most damaging result. All but the
            first start at a random point in any case.
        stop_when_fooled: Whether to return, per image, the first iterate that fools the model in
            every look, if there is one. Robust accuracy is that of `keep_best`, at a part of the
            cost: these images take no further part, and as soon as half a batch or more is done
            with, the loop goes on with a half, a quarter or an eighth of it.
        gradient_samples: Looks at each image that a gradient is the mean of; more than one only
            for a model or views that are random. The model is shown `batch_size` times as many
            images.
        loss: `cross_entropy` as ART computes it, or `stable_cross_entropy`, the same loss without
            the rounding that misleads an attack where the model is confident.
        batch_size: Images attacked at a time.
        seed: Seed of everything random.
    """

    options: ClassVar[Mapping[str, Option]] = {
        **GradientAttack.options,
        "step_size": POSITIVE,
        "iterations": COUNT,
        "keep_best": FLAG,
        "restarts": COUNT,
        "stop_when_fooled": FLAG,
        "gradient_samples": COUNT,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **GradientAttack.defaults,
        "keep_best": False,
        "restarts": 1,
        "stop_when_fooled": False,
        "gradient_samples": 1,
    }

    step_size: float
    iterations: int
    keep_best: bool
    restarts: int
    stop_when_fooled: bool

    def _schedule(self) -> Schedule:
        return Schedule(self.step_size, self.iterations, self.keep_best, self.stop_when_fooled)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        beginning, rows = self._begin(batch), np.arange(len(batch.labels))
        best, is_stuck = self._run(batch, beginning, rows, self._limits())
        for run in range(1, self.restarts):
            rows = _unfooled(best) if self.stop_when_fooled else rows
            if len(rows):
                again, _ = self._run(batch, beginning, rows, self._limits(run))
                best = better(best, put(best, rows, again))
        return self._outcome(best, is_stuck)

    def _run(
        self, batch: AttackBatch, ascent: Ascent, rows: np.ndarray, limits: Limits
    ) -> tuple[Candidate, tf.Tensor]:
        """Goes on with some images to the end, and with ever fewer of them where it may stop.

        Returns:
            Their `best` and `is_stuck`, followed by rows that fill up a bucket.
        """
        filled = fill_up(rows, bucket_size(len(rows), self.batch_size))
        limits = limits._replace(enough=tf.constant(self._largest_half(len(filled))))
        part = take(batch, filled)
        ascent = _take(ascent, filled, len(rows))
        ascent = self._compiled_climb(part, ascent, limits, self._mode())
        result, left = (ascent.best, ascent.is_stuck), _unfooled(ascent.best)
        if ascent.done < limits.iterations and len(left):
            return put(result, left, self._run(part, ascent, left, limits))
        return result

    def _largest_half(self, size: int) -> int:
        """Returns how many images at most fit a bucket of half the size; 0 for the smallest."""
        counts = range(1, size)
        halved = (n for n in counts if 2 * bucket_size(n, self.batch_size) <= size)
        return max(halved, default=0)


def _unfooled(best: Candidate) -> np.ndarray:
    return np.flatnonzero(best.fooled.numpy() < 1.0)


def _take(ascent: Ascent, rows: np.ndarray, count: int) -> Ascent:
    """Returns the rows of an ascent; those after the first `count` have nothing left to do."""
    ascent = tf.nest.map_structure(
        lambda tensor: take(tensor, rows) if tensor.shape.rank else tensor, ascent
    )
    fooled = tf.where(np.arange(len(rows)) < count, ascent.best.fooled, 1.0)
    return ascent._replace(best=ascent.best._replace(fooled=fooled))


class ProjectedGradientDescent(IteratedGradientAttack):
    """Many small steps, each projected on the ball: PGD.

    Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018, section
    2.1. Its options are those of `IteratedGradientAttack`; by default, without `random_start` and
    `keep_best`, it makes the same images as ART's `ProjectedGradientDescent` of the same settings.
    """
