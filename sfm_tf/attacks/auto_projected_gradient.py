"""Projected gradient ascent that chooses its own step sizes: APGD."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_options import COUNT, NORM, POSITIVE, SEED, SHARE, Option
from sfm_tf.attacks.candidates import (
    Candidate,
    better,
    evaluate,
    make_candidate,
    worst_candidate,
)
from sfm_tf.attacks.compiled_attack import AttackBatch, BatchOutcome, CompiledAttack
from sfm_tf.attacks.cross_entropy import stable_cross_entropy
from sfm_tf.attacks.input_gradients import usable_gradient
from sfm_tf.attacks.margin_losses import (
    check_class_count,
    difference_of_logits_ratio,
    margin,
    targeted_difference_of_logits_ratio,
    without_label,
)
from sfm_tf.attacks.norm_balls import BALLS, Ball, sample_points
from sfm_tf.attacks.selection import choose
from sfm_tf.attacks.step_pacing import Pace, adapt, checkpoint_windows, initial_pace

# Croce and Hein 2020, Algorithm 1: alpha, the weight of the new step beside the one before.
_NEW_STEP_WEIGHT = 0.75


class _Loss(NamedTuple):
    """What the attack can climb.

    Attributes:
        values: Maps logits, labels and target classes to the loss of each image.
        class_count: Fewest classes that the loss is defined for.
        targeted: Whether it goes for a target class, so that each target needs a run of its own.
    """

    values: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    class_count: int
    targeted: bool = False


_LOSSES: Mapping[str, _Loss] = {
    "cross_entropy": _Loss(lambda logits, labels, _: stable_cross_entropy(logits, labels), 2),
    "dlr": _Loss(lambda logits, labels, _: difference_of_logits_ratio(logits, labels), 3),
    "targeted_dlr": _Loss(targeted_difference_of_logits_ratio, 4, targeted=True),
}
_LOSS = Option(
    lambda value: isinstance(value, str) and value in _LOSSES, f"one of {', '.join(_LOSSES)}"
)


class _Limits(NamedTuple):
    """What can change without compiling anew, except for the number of `windows`."""

    epsilon: tf.Tensor
    rho: tf.Tensor
    restarts: tf.Tensor
    windows: tf.Tensor


class _Mode(NamedTuple):
    """What the compiled search is specialised for."""

    norm: float | str
    loss: str
    target_count: int


class _Point(NamedTuple):
    """An iterate: its images, the loss there and the gradient of that."""

    images: tf.Tensor
    objective: tf.Tensor
    gradient: tf.Tensor


class _Climb(NamedTuple):
    """The state of one run.

    `images` are evaluated next, `last` is the point they were reached from, `top` the one of the
    highest objective, `best` the most damaging one, and `is_stuck` tells which images had a
    gradient of zero to begin with.
    """

    images: tf.Tensor
    last: _Point
    top: _Point
    pace: Pace
    best: Candidate
    is_stuck: tf.Tensor


class AutoProjectedGradientDescent(CompiledAttack):
    """Momentum, and steps that halve where progress stalls: APGD.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020, Algorithm 1. Each image has its own step, twice the radius to
    begin with. A checkpoint that halves it also takes the image back to its best iterate.

    Every run starts at a random point of the ball. The first one takes all its steps for all
    images; further ones count only for images that the model still classifies as labelled.
    Returned is, per image, the iterate that the model gets most wrong by the margin of its logits,
    or least right; the image itself is one of them.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        loss: `cross_entropy` in its stable form, `dlr` for at least three classes, or
            `targeted_dlr` for at least four, which goes for one wrong class after another.
        iterations: Number of steps of a run.
        restarts: Number of runs; of `targeted_dlr`, for each target class.
        target_classes: How many classes `targeted_dlr` goes for, those that the model deems most
            likely on the image itself first; a model may have fewer.
        rho: Share of the steps between two checkpoints in which the loss must rise.
        batch_size: Images attacked at a time.
        seed: Seed of the random starts.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "norm": NORM,
        "epsilon": POSITIVE,
        "loss": _LOSS,
        "iterations": COUNT,
        "restarts": COUNT,
        "target_classes": COUNT,
        "rho": SHARE,
        "batch_size": COUNT,
        "seed": SEED,
    }
    attack_params: ClassVar[list[str]] = list(options)

    loss: str
    iterations: int
    restarts: int
    target_classes: int
    rho: float

    def __init__(
        self,
        estimator: TensorFlowV2Classifier,
        *,
        norm: float | str = math.inf,
        epsilon: float,
        loss: str = "cross_entropy",
        iterations: int = 100,
        restarts: int = 1,
        target_classes: int = 9,
        rho: float = 0.75,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        """Sets the options and prepares the search, which is compiled at the first batch."""
        super().__init__(
            estimator,
            norm=norm,
            epsilon=epsilon,
            loss=loss,
            iterations=iterations,
            restarts=restarts,
            target_classes=target_classes,
            rho=rho,
            batch_size=batch_size,
            seed=seed,
        )
        # A partial, because TensorFlow counts compilations by the code of a function.
        self._compiled_search = tf.function(functools.partial(self._search), autograph=False)

    def set_params(self, **options: Any) -> None:
        """Sets options by name, all or none.

        Raises:
            SfmError: If an option is unknown, its value not allowed, or the model has too few
                classes for the loss.
        """
        loss = options.get("loss")
        if isinstance(loss, str) and loss in _LOSSES:
            check_class_count(loss, self.estimator.nb_classes, _LOSSES[loss].class_count)
        super().set_params(**options)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        limits = _Limits(
            tf.constant(self.epsilon, tf.float32),
            tf.constant(self.rho, tf.float32),
            tf.constant(self.restarts, tf.int32),
            tf.constant(checkpoint_windows(self.iterations)),
        )
        most = min(self.target_classes, self.estimator.nb_classes - 1)
        target_count = most if _LOSSES[self.loss].targeted else 1
        return self._compiled_search(batch, limits, _Mode(self.norm, self.loss, target_count))

    def _search(self, batch: AttackBatch, limits: _Limits, mode: _Mode) -> BatchOutcome:
        logits = self._logits(batch.images)
        targets = tf.math.top_k(without_label(logits, batch.labels), mode.target_count).indices
        unchanged = _candidate(batch.images, logits, batch.labels, tf.constant(0))

        def climb_again(run: tf.Tensor, best: Candidate, is_stuck: tf.Tensor) -> Any:
            target = tf.gather(targets, run // limits.restarts, axis=1)
            climb = self._climb(batch, target, run, limits, mode)
            counts = (run == 0) | (best.fooled == 0.0)
            best = choose(counts, better(best, climb.best), best)
            return run + 1, best, tf.where(run == 0, climb.is_stuck, is_stuck)

        def is_unfinished(run: tf.Tensor, best: Candidate, is_stuck: tf.Tensor) -> tf.Tensor:
            del is_stuck
            runs = limits.restarts * mode.target_count
            return (run == 0) | ((run < runs) & tf.reduce_any(best.fooled == 0.0))

        nobody = tf.zeros_like(batch.labels, tf.bool)
        _, best, is_stuck = tf.while_loop(is_unfinished, climb_again, (0, unchanged, nobody))
        loss = stable_cross_entropy(self._logits(best.images), batch.labels)
        return BatchOutcome(best.images, loss, best.iterations, is_stuck)

    def _climb(
        self, batch: AttackBatch, targets: tf.Tensor, run: tf.Tensor, limits: _Limits, mode: _Mode
    ) -> _Climb:
        ball = BALLS[mode.norm]
        steps = tf.shape(limits.windows)[0] - 1

        def step(done: tf.Tensor, climb: _Climb) -> tuple[tf.Tensor, _Climb]:
            point, logits = self._evaluate(climb.images, batch, targets, mode.loss)
            candidate = _candidate(climb.images, logits, batch.labels, run * steps + done)
            top = choose(point.objective > climb.top.objective, point, climb.top)
            rose = point.objective > climb.last.objective
            pace, halved = adapt(climb.pace, rose, top.objective, limits.windows[done], limits.rho)
            point = choose(halved, top, point)
            weight = tf.where(done == 0, 1.0, _NEW_STEP_WEIGHT)
            images = _moved(point, climb.last.images, pace.step_size, weight, batch, ball, limits)
            is_zero = tf.reduce_all(point.gradient == 0.0, axis=(1, 2, 3))
            is_stuck = tf.where(done == 0, is_zero, climb.is_stuck)
            best = better(climb.best, candidate)
            return done + 1, _Climb(images, point, top, pace, best, is_stuck)

        # One turn more than steps: the last iterate is evaluated, too.
        start = _start(batch, run, ball, limits)
        _, climb = tf.while_loop(lambda done, _: done <= steps, step, (0, start))
        return climb

    def _evaluate(
        self, images: tf.Tensor, batch: AttackBatch, targets: tf.Tensor, loss: str
    ) -> tuple[_Point, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = self._logits(images)
            objective = _LOSSES[loss].values(logits, batch.labels, targets)
        gradient = usable_gradient(tape.gradient(objective, images), batch.mask)
        return _Point(images, objective, gradient), logits


def _candidate(
    images: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, iteration: tf.Tensor
) -> Candidate:
    # By its margin, which compares what runs of different targets have found.
    evaluation = evaluate(-margin(logits, labels), logits, labels, targeted=False)
    return make_candidate(images, evaluation, iteration)


def _start(batch: AttackBatch, run: tf.Tensor, ball: Ball, limits: _Limits) -> _Climb:
    seeds = tf.map_fn(lambda seed: tf.random.experimental.stateless_fold_in(seed, run), batch.seeds)
    points = limits.epsilon * sample_points(ball, batch.images.shape[1:], seeds)
    images = tf.clip_by_value(batch.images + batch.mask * points, 0.0, 1.0)
    infinite = tf.fill(tf.shape(batch.labels), math.inf)
    nowhere = tf.zeros_like(images)
    return _Climb(
        images,
        last=_Point(images, infinite, nowhere),
        top=_Point(images, -infinite, nowhere),
        pace=initial_pace(2.0 * limits.epsilon, tf.shape(batch.labels)),
        best=worst_candidate(images),
        is_stuck=tf.zeros_like(batch.labels, tf.bool),
    )


def _moved(
    point: _Point,
    last_images: tf.Tensor,
    step_size: tf.Tensor,
    weight: tf.Tensor,
    batch: AttackBatch,
    ball: Ball,
    limits: _Limits,
) -> tf.Tensor:
    def allowed(images: tf.Tensor) -> tf.Tensor:
        change = ball.project(images - batch.images, limits.epsilon)
        # Clipping brings no pixel further from the image, so this stays in the ball.
        return tf.clip_by_value(batch.images + change, 0.0, 1.0)

    step = step_size[:, None, None, None] * ball.steepest(point.gradient)
    new_change = allowed(point.images + step) - point.images
    last_change = point.images - last_images
    return allowed(point.images + weight * new_change + (1.0 - weight) * last_change)
