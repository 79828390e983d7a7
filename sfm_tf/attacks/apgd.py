"""Projected gradient ascent that chooses its own step sizes: APGD."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    COUNT,
    NORM,
    POSITIVE,
    SEED,
    SHARE,
    AttackBatch,
    BatchOutcome,
    Candidate,
    CompiledAttack,
    Evaluation,
    Option,
    advance_unfinished,
    better,
    choose,
    evaluate,
    make_candidate,
    usable_gradient,
    worst_candidate,
)
from sfm_tf.attacks.norm_balls import BALLS, Ball, sample_points
from sfm_tf.attacks.seeds import numbered
from sfm_tf.models.logit_losses import (
    check_class_count,
    difference_of_logits_ratio,
    margin,
    stable_cross_entropy,
    targeted_difference_of_logits_ratio,
    without_label,
)

# Percent of the iterations, from Croce and Hein 2020, "Reliable evaluation of adversarial
# robustness with an ensemble of diverse parameter-free attacks": the first checkpoint, by how much
# each gap between two is smaller than the one before, and the smallest gap.
_FIRST_CHECKPOINT = 22
_GAP_DECREASE = 3
_SMALLEST_GAP = 6
_NO_CHECKPOINT = -1


class Pace(NamedTuple):
    """The step size of each image and what decides on it at the next checkpoint.

    Attributes:
        step_size: Float32 `(batch,)`, in the units of the pixels.
        rises: Float32 `(batch,)`: steps since the last checkpoint that increased the loss.
        best_objective: Float32 `(batch,)`: the highest loss as of the last checkpoint.
        halved: Bool `(batch,)`: whether the last checkpoint halved the step.
    """

    step_size: tf.Tensor
    rises: tf.Tensor
    best_objective: tf.Tensor
    halved: tf.Tensor


def checkpoint_windows(iterations: int) -> np.ndarray:
    """Returns where the step sizes are looked at, which is more and more often.

    Args:
        iterations: Number of steps, at least 1.

    Returns:
        Int32 of shape `(iterations + 1,)`, by the number of steps done: at a checkpoint how many
        steps ago the one before was, and -1 elsewhere. The start counts as a checkpoint.
    """
    percent, gap = _FIRST_CHECKPOINT, _FIRST_CHECKPOINT
    windows = np.full(iterations + 1, _NO_CHECKPOINT, np.int32)
    windows[0] = 0
    last = 0
    while percent <= 100:
        checkpoint = -(-percent * iterations // 100)
        if checkpoint > last:
            windows[checkpoint] = checkpoint - last
            last = checkpoint
        gap = max(gap - _GAP_DECREASE, _SMALLEST_GAP)
        percent += gap
    return windows


def initial_pace(step_size: tf.Tensor, batch_size: tf.Tensor) -> Pace:
    """Returns the pace before the first evaluation, with one step size for all images."""
    zeros = tf.zeros(batch_size)
    return Pace(zeros + step_size, zeros, zeros - float("inf"), tf.zeros(batch_size, tf.bool))


def adapt(
    pace: Pace, rose: tf.Tensor, best_objective: tf.Tensor, window: tf.Tensor, rho: tf.Tensor
) -> tuple[Pace, tf.Tensor]:
    """Counts a step and, at a checkpoint, halves the step sizes that do not serve.

    Croce and Hein 2020, section 3: a step is halved if the loss rose in less than `rho` of the
    steps since the last checkpoint (condition 1), or if that checkpoint left the step as it was and
    the best loss has not risen since (condition 2).

    Args:
        pace: The pace before this step.
        rose: Bool `(batch,)`: whether the step increased the loss.
        best_objective: Float32 `(batch,)`: the highest loss so far.
        window: This step's entry of `checkpoint_windows`.
        rho: Scalar in [0, 1].

    Returns:
        The new pace, and bool `(batch,)`: whose step was halved.
    """
    rises = pace.rises + tf.cast(rose, tf.float32)
    rose_rarely = rises < rho * tf.cast(window, tf.float32)
    stalled = ~pace.halved & (best_objective == pace.best_objective)
    is_checkpoint = window != _NO_CHECKPOINT
    halves = is_checkpoint & (rose_rarely | stalled)
    new_pace = Pace(
        tf.where(halves, pace.step_size / 2.0, pace.step_size),
        tf.where(is_checkpoint, 0.0, rises),
        tf.where(is_checkpoint, best_objective, pace.best_objective),
        tf.where(is_checkpoint, halves, pace.halved),
    )
    return new_pace, halves


# Croce and Hein 2020, Algorithm 1: alpha, the weight of the new step beside the one before.
_NEW_STEP_WEIGHT = 0.75


class Limits(NamedTuple):
    """What can change without compiling anew, except for the number of `windows`.

    Attributes:
        epsilon: Radius of the ball.
        rho: Share of the steps between two checkpoints in which the loss must rise.
        windows: What `checkpoint_windows` returns for the number of steps.
    """

    epsilon: tf.Tensor
    rho: tf.Tensor
    windows: tf.Tensor


class Point(NamedTuple):
    """An iterate: its images, the loss there and the gradient of that."""

    images: tf.Tensor
    objective: tf.Tensor
    gradient: tf.Tensor


class Climb(NamedTuple):
    """The state of one run.

    Attributes:
        images: The images that are evaluated next.
        last: The point they were reached from.
        top: The point of the highest objective.
        pace: The step sizes.
        best: The most damaging images.
        is_stuck: Bool `(batch,)`: which images had a gradient of zero to begin with.
    """

    images: tf.Tensor
    last: Point
    top: Point
    pace: Pace
    best: Candidate
    is_stuck: tf.Tensor


def ascend(
    start: tf.Tensor,
    batch: AttackBatch,
    ball: Ball,
    limits: Limits,
    evaluate: Callable[[tf.Tensor], tuple[Point, Evaluation]],
    first_iteration: tf.Tensor,
) -> Climb:
    """Runs Algorithm 1 of Croce and Hein 2020.

    A step is twice the radius long to begin with. A checkpoint that halves it also takes the image
    back to its top.

    Args:
        start: Images of the ball to begin with.
        batch: The attacked images.
        ball: The ball around each of them.
        limits: Its radius, and how many steps to take at which pace.
        evaluate: Maps images to their point on the climb, and to how much damage they do.
        first_iteration: Int32 number that the candidates' iterations count from.
    """
    steps = tf.shape(limits.windows)[0] - 1

    def step(done: tf.Tensor, climb: Climb) -> tuple[tf.Tensor, Climb]:
        point, evaluation = evaluate(climb.images)
        candidate = make_candidate(climb.images, evaluation, first_iteration + done)
        top = choose(point.objective > climb.top.objective, point, climb.top)
        rose = point.objective > climb.last.objective
        pace, halved = adapt(climb.pace, rose, top.objective, limits.windows[done], limits.rho)
        point = choose(halved, top, point)
        weight = tf.where(done == 0, 1.0, _NEW_STEP_WEIGHT)
        images = _moved(point, climb.last.images, pace.step_size, weight, batch, ball, limits)
        is_zero = tf.reduce_all(point.gradient == 0.0, axis=(1, 2, 3))
        is_stuck = tf.where(done == 0, is_zero, climb.is_stuck)
        best = better(climb.best, candidate)
        return done + 1, Climb(images, point, top, pace, best, is_stuck)

    # One turn more than steps: the last iterate is evaluated, too.
    _, climb = tf.while_loop(
        lambda done, _: done <= steps, step, (0, _initial_climb(start, batch, limits))
    )
    return climb


def _initial_climb(start: tf.Tensor, batch: AttackBatch, limits: Limits) -> Climb:
    infinite = tf.fill(tf.shape(batch.labels), math.inf)
    nowhere = tf.zeros_like(start)
    return Climb(
        start,
        last=Point(start, infinite, nowhere),
        top=Point(start, -infinite, nowhere),
        pace=initial_pace(2.0 * limits.epsilon, tf.shape(batch.labels)),
        best=worst_candidate(start),
        is_stuck=tf.zeros_like(batch.labels, tf.bool),
    )


def _moved(
    point: Point,
    last_images: tf.Tensor,
    step_size: tf.Tensor,
    weight: tf.Tensor,
    batch: AttackBatch,
    ball: Ball,
    limits: Limits,
) -> tf.Tensor:
    def allowed(images: tf.Tensor) -> tf.Tensor:
        change = ball.project(images - batch.images, limits.epsilon)
        # Clipping brings no pixel further from the image, so this stays in the ball.
        return tf.clip_by_value(batch.images + change, 0.0, 1.0)

    step = step_size[:, None, None, None] * ball.steepest(point.gradient)
    new_change = allowed(point.images + step) - point.images
    last_change = point.images - last_images
    return allowed(point.images + weight * new_change + (1.0 - weight) * last_change)


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


class _Mode(NamedTuple):
    """What the compiled search is specialised for."""

    norm: float | str
    loss: str
    target_count: int
    looks: int


class _Aim(NamedTuple):
    """The images of a run and, for each, the class it goes for if the loss is targeted."""

    batch: AttackBatch
    targets: tf.Tensor


class AutoProjectedGradientDescent(CompiledAttack):
    """Momentum, and steps that halve where progress stalls: APGD.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020, Algorithm 1. Each image has its own step, twice the radius to
    begin with. A checkpoint that halves it also takes the image back to its best iterate.

    Every run starts at a random point of the ball. The first one takes all its steps for all
    images; further ones only see those that the model still classifies as labelled. Returned is,
    per image, the iterate that the model gets most wrong by the margin of its logits, or least
    right; the image itself is one of them.

    Each gradient is the mean over `gradient_samples` looks at every image, side by side in one
    batch, as in `GradientAttack`: the expectation over transformation, for a model that draws anew
    for each image of a batch. An image is then done with when the model is wrong in every look.

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
        gradient_samples: How often the model looks at each iterate, 20 in AutoAttack's `rand`.
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
        "gradient_samples": COUNT,
        "batch_size": COUNT,
        "seed": SEED,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **CompiledAttack.defaults,
        "loss": "cross_entropy",
        "iterations": 100,
        "restarts": 1,
        "target_classes": 9,
        "rho": 0.75,
        "gradient_samples": 1,
    }

    loss: str
    iterations: int
    restarts: int
    target_classes: int
    rho: float
    gradient_samples: int

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Sets the options and prepares the search, which is compiled at the first batch."""
        super().__init__(estimator, **options)
        # Partials, because TensorFlow counts compilations by the code of a function.
        self._compiled_look = tf.function(functools.partial(self._look), autograph=False)
        self._compiled_climb = tf.function(functools.partial(self._climb), autograph=False)
        self._compiled_loss = tf.function(functools.partial(self._loss), autograph=False)

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
        limits = Limits(
            tf.constant(self.epsilon, tf.float32),
            tf.constant(self.rho, tf.float32),
            tf.constant(checkpoint_windows(self.iterations)),
        )
        most = min(self.target_classes, self.estimator.nb_classes - 1)
        target_count = most if _LOSSES[self.loss].targeted else 1
        mode = _Mode(self.norm, self.loss, target_count, self.gradient_samples)
        best, targets = self._compiled_look(batch, mode)
        is_stuck = tf.zeros_like(batch.labels, tf.bool)
        for run in range(target_count * self.restarts):
            climb = functools.partial(
                self._compiled_climb, run=tf.constant(run), limits=limits, mode=mode
            )
            aim = _Aim(batch, targets[:, run // self.restarts])
            is_done = (best.fooled == 1.0) & (run > 0)
            best, is_stuck = advance_unfinished(
                climb, aim, (best, is_stuck), is_done, self.batch_size
            )
        loss = self._compiled_loss(best.images, batch.labels, mode)
        return BatchOutcome(best.images, loss, best.iterations, is_stuck)

    def _look(self, batch: AttackBatch, mode: _Mode) -> tuple[Candidate, tf.Tensor]:
        """Returns the images themselves as candidates, and each one's most likely wrong classes."""
        logits = self._logits(tf.repeat(batch.images, mode.looks, axis=0))
        evaluation = _damage(logits, tf.repeat(batch.labels, mode.looks), mode)
        mean = tf.reduce_mean(tf.reshape(logits, (-1, mode.looks, logits.shape[1])), axis=1)
        targets = tf.math.top_k(without_label(mean, batch.labels), mode.target_count).indices
        return make_candidate(batch.images, evaluation, tf.constant(0)), targets

    def _climb(
        self,
        aim: _Aim,
        state: tuple[Candidate, tf.Tensor],
        run: tf.Tensor,
        limits: Limits,
        mode: _Mode,
    ) -> tuple[Candidate, tf.Tensor]:
        batch, (best, is_stuck), ball = aim.batch, state, BALLS[mode.norm]
        points = sample_points(ball, batch.images.shape[1:], numbered(batch.seeds, run))
        points *= limits.epsilon * batch.mask
        start = tf.clip_by_value(batch.images + points, 0.0, 1.0)
        first_iteration = run * (tf.shape(limits.windows)[0] - 1)
        evaluate_here = functools.partial(self._evaluate, aim=aim, mode=mode)
        climb = ascend(start, batch, ball, limits, evaluate_here, first_iteration)
        is_stuck = tf.where(run == 0, climb.is_stuck, is_stuck)
        return better(best, climb.best), is_stuck

    def _evaluate(self, images: tf.Tensor, aim: _Aim, mode: _Mode) -> tuple[Point, Evaluation]:
        labels, targets = (tf.repeat(v, mode.looks) for v in (aim.batch.labels, aim.targets))
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = self._logits(tf.repeat(images, mode.looks, axis=0))
            losses = _LOSSES[mode.loss].values(logits, labels, targets)
            objective = tf.reduce_mean(tf.reshape(losses, (-1, mode.looks)), axis=1)
        gradient = usable_gradient(tape.gradient(objective, images), aim.batch.mask)
        return Point(images, objective, gradient), _damage(logits, labels, mode)

    def _loss(self, images: tf.Tensor, labels: tf.Tensor, mode: _Mode) -> tf.Tensor:
        logits = self._logits(tf.repeat(images, mode.looks, axis=0))
        losses = stable_cross_entropy(logits, tf.repeat(labels, mode.looks))
        return tf.reduce_mean(tf.reshape(losses, (-1, mode.looks)), axis=1)


def _damage(logits: tf.Tensor, labels: tf.Tensor, mode: _Mode) -> Evaluation:
    # By the margin, which compares what runs of different targets have found.
    return evaluate(-margin(logits, labels), logits, labels, targeted=False, looks=mode.looks)
