"""Projected gradient descent (PGD), and the loop that all iterated gradient attacks share."""

import dataclasses
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
    Scores,
    better,
    bucket_size,
    choose,
    fill_up,
    is_zero,
    make_candidate,
    one_of,
    put,
    score,
    take,
    usable_gradient,
    worst_candidate,
)
from sfm_tf.attacks.norm_balls import BALLS, sample_points
from sfm_tf.attacks.seeds import numbered, uniforms_by_step
from sfm_tf.models.logit_losses import LOSSES


class LoopSettings(NamedTuple):
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


class LoopState(NamedTuple):
    """How far the attack of a batch has come.

    Attributes:
        done: Int32 scalar: number of steps taken.
        images: Float32 `(batch, height, width, channels)`: the iterates.
        memory: What `_initial_memory` returned, as the last step left it.
        best: What to return, once all steps are done.
        is_stuck: Bool `(batch,)`: whether the first gradient was zero.
    """

    done: tf.Tensor
    images: tf.Tensor
    memory: Any
    best: Candidate
    is_stuck: tf.Tensor


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class GradientAttack(CompiledAttack):
    """Repeats: step along the gradient of the loss, clip to [0, 1], project on the ball.

    The order and the arithmetic are those of ART's `ProjectedGradientDescentTensorFlowV2`. The
    whole loop is one `tf.function` in which radius, step and number of iterations are tensors.
    The loss is summed over the batch, so that no gradient is divided by the batch size.

    A subclass that steers by more than the last gradient overrides `_initial_memory` and
    `_search_direction`; one with another loss, `_losses`; one that takes the gradient at something
    random made of the images, `_views` and `uniforms_per_view`.

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
            every sample, if there is one. Robust accuracy is that of `keep_best`, at a part of the
            cost: these images take no further part, and as soon as half a batch or more is done
            with, the loop goes on with a half, a quarter or an eighth of it.
        gradient_samples: Number of times that the model is shown each image for one gradient, side
            by side in one batch; the gradient is the mean: the expectation over transformation
            (EOT) of Athalye et al. 2018 ("Synthesizing robust adversarial examples", section 2.1).
            More than one is of use only for a model or views that draw anew for each image.
        loss: `cross_entropy` as ART computes it; `stable_cross_entropy`, the same loss without
            the rounding that misleads an attack where the model is confident; or `margin`, by which
            the best wrong class exceeds the label, which does not depend on the logits' scale.
        batch_size: Images attacked at a time.
        seed: Seed of everything random.
    """

    step_size: float
    iterations: int
    random_start: bool = False
    keep_best: bool = False
    restarts: int = 1
    stop_when_fooled: bool = False
    gradient_samples: int = 1
    loss: str = "cross_entropy"

    uniforms_per_view: ClassVar[int] = 0
    graph_options: ClassVar[tuple[str, ...]] = (
        "norm",
        "targeted",
        "keep_best",
        "stop_when_fooled",
        "gradient_samples",
        "loss",
    )

    def __post_init__(self, estimator: TensorFlowV2Classifier) -> None:
        """Prepares the loop, which is compiled at the first batch."""
        super().__post_init__(estimator)
        self._compiled_loop = self._compiled(self._loop, *self.graph_options)

    def _check_params(self) -> None:
        super()._check_params()
        self._check(POSITIVE, "step_size")
        self._check(COUNT, "iterations", "restarts", "gradient_samples")
        self._check(FLAG, "random_start", "keep_best", "stop_when_fooled")
        self._check(one_of(LOSSES), "loss")

    def _initial_memory(self, images: tf.Tensor) -> Any:
        """Returns the tensors, if any, that the attack carries from step to step.

        It runs before the compiled loop, once per batch: numbers among the options are to be read
        here, because the loop would keep the value they had when it was compiled. A tensor is a
        scalar or has a row for each image.
        """
        del images
        return ()

    def _search_direction(self, gradient: tf.Tensor, memory: Any) -> tuple[tf.Tensor, Any]:
        """Returns what to step along, given the gradient of the objective, and the new memory."""
        return gradient, memory

    def _views(self, images: tf.Tensor, uniforms: tf.Tensor, memory: Any) -> tf.Tensor:
        """Returns what the model is shown of `images` when their gradient is taken.

        Args:
            images: Float32 in [0, 1], shape `(batch * gradient_samples, height, width, channels)`.
            uniforms: Float32 in [0, 1), with a row of `uniforms_per_view` for each of them, drawn
                anew in each step, from the image's own seed.
            memory: As in `LoopState`.
        """
        del uniforms, memory
        return images

    def _losses(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each image, float32 of shape `(batch,)`."""
        return LOSSES[self.loss](logits, labels)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        """Runs the loop, once and again for each restart, and keeps each image's best result."""
        memory = self._initial_memory(batch.images)
        none = tf.zeros_like(batch.labels, tf.bool)
        best = worst_candidate(batch.images)
        start = LoopState(tf.constant(0), batch.images, memory, best, none)
        rows = np.arange(len(batch.labels))
        best, is_stuck = self._run(batch, start, rows, 0)
        for run in range(1, self.restarts):
            rows = _unfooled(best) if self.stop_when_fooled else rows
            if len(rows):
                again, _ = self._run(batch, start, rows, run)
                best = better(best, put(best, rows, again))
        loss = -best.objective if self.targeted else best.objective
        return BatchOutcome(best.images, loss, best.iterations, is_stuck)

    def _run(
        self, batch: AttackBatch, state: LoopState, rows: np.ndarray, run: int
    ) -> tuple[Candidate, tf.Tensor]:
        """Goes on with some images to the end, and with ever fewer of them where it may stop.

        Returns:
            Their `best` and `is_stuck`, followed by rows that fill up a bucket.
        """
        filled = fill_up(rows, bucket_size(len(rows), self.batch_size))
        settings = self._settings(run, self._largest_half(len(filled)))
        part = take(batch, filled)
        state = self._compiled_loop(part, _take(state, filled, len(rows)), settings)
        result, left = (state.best, state.is_stuck), _unfooled(state.best)
        if state.done < settings.iterations and len(left):
            return put(result, left, self._run(part, state, left, run))
        return result

    def _settings(self, run: int, enough: int) -> LoopSettings:
        return LoopSettings(
            tf.constant(self.epsilon, tf.float32),
            tf.constant(self.step_size, tf.float32),
            tf.constant(self.iterations, tf.int32),
            # A second run from the image itself would be the first one again.
            tf.constant(self.random_start or run > 0),
            tf.constant(run),
            tf.constant(enough),
        )

    def _largest_half(self, size: int) -> int:
        """Returns how many images at most fit a bucket of half the size; 0 for the smallest."""
        counts = range(1, size)
        halved = (n for n in counts if 2 * bucket_size(n, self.batch_size) <= size)
        return max(halved, default=0)

    def _loop(self, batch: AttackBatch, state: LoopState, settings: LoopSettings) -> LoopState:
        """Takes all steps, or as many as it takes to fool enough images."""
        batch = batch._replace(seeds=numbered(batch.seeds, settings.run))
        images = tf.cond(
            settings.random_start & (state.done == 0),
            lambda: self._random_images(batch, settings.epsilon),
            lambda: state.images,
        )
        uniforms = uniforms_by_step(
            batch.seeds, settings.iterations, self.gradient_samples, self.uniforms_per_view
        )

        def is_unfinished(state: LoopState) -> tf.Tensor:
            is_left = state.done < settings.iterations
            unfooled = tf.math.count_nonzero(state.best.fooled < 1.0, dtype=tf.int32)
            return is_left & (unfooled > settings.enough) if self.stop_when_fooled else is_left

        def step(state: LoopState) -> tuple[LoopState]:
            return (self._step(state, uniforms[state.done], batch, settings),)

        (state,) = tf.while_loop(is_unfinished, step, (state._replace(images=images),))
        return tf.cond(
            state.done == settings.iterations,
            lambda: state._replace(best=self._result(state, batch)),
            lambda: state,
        )

    def _random_images(self, batch: AttackBatch, epsilon: tf.Tensor) -> tf.Tensor:
        points = sample_points(BALLS[self.norm], batch.images.shape[1:], batch.seeds)
        return tf.clip_by_value(batch.images + batch.mask * (epsilon * points), 0.0, 1.0)

    def _step(
        self, state: LoopState, uniforms: tf.Tensor, batch: AttackBatch, settings: LoopSettings
    ) -> LoopState:
        done, images, memory, best, is_stuck = state
        scores, gradient = self._scores_and_gradient(images, uniforms, batch, memory)
        if self.keep_best or self.stop_when_fooled:
            if self.uniforms_per_view:
                # What counts is the model at the images, not at the views.
                scores = self._scores(self._samples(images), batch, memory)
            best = self._better(best, make_candidate(images, scores, done))
        is_stuck = tf.cond(done == 0, lambda: is_zero(gradient), lambda: is_stuck)
        direction, memory = self._search_direction(gradient, memory)
        ball = BALLS[self.norm]
        moved = images + settings.step_size * ball.steepest(direction)
        change = ball.project(tf.clip_by_value(moved, 0.0, 1.0) - batch.images, settings.epsilon)
        return LoopState(done + 1, batch.images + change, memory, best, is_stuck)

    def _scores_and_gradient(
        self, images: tf.Tensor, uniforms: tf.Tensor, batch: AttackBatch, memory: Any
    ) -> tuple[Scores, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            scores = self._scores(
                self._views(self._samples(images), uniforms, memory), batch, memory
            )
        gradient = tape.gradient(scores.objective, images)
        return scores, usable_gradient(gradient, batch.mask)

    def _scores(self, views: tf.Tensor, batch: AttackBatch, memory: Any) -> Scores:
        """Returns the scores of what the model is shown, `gradient_samples` views of an image."""
        del memory
        logits, labels = self._logits(views), self._samples(batch.labels)
        losses = self._losses(logits, labels)
        return score(losses, logits, labels, self.targeted, self.gradient_samples)

    def _samples(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns each row `gradient_samples` times, next to each other."""
        return tf.repeat(rows, self.gradient_samples, axis=0)

    def _result(self, state: LoopState, batch: AttackBatch) -> Candidate:
        # Adding the perturbation can round past the ends of [0, 1].
        images = tf.clip_by_value(state.images, 0.0, 1.0)
        scores = self._scores(self._samples(images), batch, state.memory)
        last = make_candidate(images, scores, state.done)
        if self.keep_best:
            return self._better(state.best, last)
        is_fooled = state.best.fooled == 1.0
        return choose(is_fooled, state.best, last) if self.stop_when_fooled else last

    def _better(self, best: Candidate, candidate: Candidate) -> Candidate:
        if self.stop_when_fooled:
            # An image that fools the model in every sample is not followed any further.
            objective = tf.where(best.fooled < 1.0, candidate.objective, -float("inf"))
            candidate = candidate._replace(objective=objective)
        return better(best, candidate)


def _unfooled(best: Candidate) -> np.ndarray:
    return np.flatnonzero(best.fooled.numpy() < 1.0)


def _take(state: LoopState, rows: np.ndarray, count: int) -> LoopState:
    """Returns the rows of a state; those after the first `count` have nothing left to do."""
    state = tf.nest.map_structure(
        lambda tensor: take(tensor, rows) if tensor.shape.rank else tensor, state
    )
    fooled = tf.where(np.arange(len(rows)) < count, state.best.fooled, 1.0)
    return state._replace(best=state.best._replace(fooled=fooled))


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class ProjectedGradientDescent(GradientAttack):
    """Many small steps, each projected on the ball: PGD.

    Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018, section
    2.1. Its options are those of `GradientAttack`; by default, without `random_start` and
    `keep_best`, it makes the same images as ART's `ProjectedGradientDescent` of the same settings.
    """
