"""Auto-PGD (APGD), projected gradient ascent that chooses its own step sizes.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", 2020, section 3 and Algorithm 1, whose names this module uses: x for
iterates, f for the loss, eta for the step size, w_j for checkpoints. All are per image of a batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    COUNT,
    SHARE,
    AttackBatch,
    BatchOutcome,
    Candidate,
    CompiledAttack,
    Scores,
    advance_unfinished,
    better,
    choose,
    is_zero,
    make_candidate,
    mean_of_samples,
    one_of,
    per_pixel,
    score,
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

ALPHA = 0.75
"""Weight of the new step beside the one before, the momentum."""

# In percent of the iterations: p_1, by how much each period is shorter than the one before, and the
# shortest period.
_FIRST_PERIOD = 22
_PERIOD_DECREASE = 3
_SHORTEST_PERIOD = 6

_NO_CHECKPOINT = -1


def checkpoints(iterations: int) -> list[int]:
    """Returns w_0 = 0, w_1, ..., the steps after which the step sizes may be halved.

    w_j = ceil(p_j * iterations), with p_0 = 0, p_1 = 0.22 and
    p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06). Where two fall together, one counts.

    Args:
        iterations: Number of steps, at least 1.
    """
    w, p, period = [0], _FIRST_PERIOD, _FIRST_PERIOD
    while p <= 100:
        w_j = -(-p * iterations // 100)
        if w_j > w[-1]:
            w.append(w_j)
        period = max(period - _PERIOD_DECREASE, _SHORTEST_PERIOD)
        p += period
    return w


def checkpoint_periods(iterations: int) -> np.ndarray:
    """Returns, by the number of steps done, w_j - w_(j-1) at a checkpoint w_j and -1 elsewhere.

    Args:
        iterations: Number of steps, at least 1.

    Returns:
        Int32 of shape `(iterations + 1,)`; the start is a checkpoint of period 0.
    """
    w = checkpoints(iterations)
    periods = np.full(iterations + 1, _NO_CHECKPOINT, np.int32)
    periods[w] = np.diff(w, prepend=0)
    return periods


class Iterate(NamedTuple):
    """An iterate x, float32 in [0, 1], with f(x) of shape `(batch,)` and the gradient of f there.

    f is what the attack maximises.
    """

    x: tf.Tensor
    f: tf.Tensor
    gradient: tf.Tensor


class StepSizes(NamedTuple):
    """The step size of each image and what conditions 1 and 2 need to know, each `(batch,)`.

    Attributes:
        eta: Float32, in the units of the pixels.
        increases: Float32: steps since the last checkpoint that increased f.
        checkpoint_f_max: Float32: f_max at the last checkpoint.
        was_halved: Bool: whether the last checkpoint halved eta.
    """

    eta: tf.Tensor
    increases: tf.Tensor
    checkpoint_f_max: tf.Tensor
    was_halved: tf.Tensor


def initial_step_sizes(eta: tf.Tensor, batch_size: tf.Tensor) -> StepSizes:
    """Returns the step sizes before the first evaluation, the same for all images."""
    zeros = tf.zeros(batch_size)
    return StepSizes(zeros + eta, zeros, zeros - float("inf"), tf.zeros(batch_size, tf.bool))


def halve_at_checkpoint(
    sizes: StepSizes, increased: tf.Tensor, f_max: tf.Tensor, period: tf.Tensor, rho: tf.Tensor
) -> tuple[StepSizes, tf.Tensor]:
    """Counts a step and, at a checkpoint, halves eta where condition 1 or condition 2 holds.

    Args:
        sizes: The step sizes before this step.
        increased: Bool `(batch,)`: whether the step increased f.
        f_max: Float32 `(batch,)`: the highest f so far.
        period: This step's entry of `checkpoint_periods`.
        rho: Scalar in [0, 1].

    Returns:
        The new step sizes, and bool `(batch,)`: whose eta was halved.
    """
    increases = sizes.increases + tf.cast(increased, tf.float32)
    condition_1 = increases < rho * tf.cast(period, tf.float32)
    condition_2 = ~sizes.was_halved & (f_max == sizes.checkpoint_f_max)
    is_checkpoint = period != _NO_CHECKPOINT
    halves = is_checkpoint & (condition_1 | condition_2)
    new_sizes = StepSizes(
        eta=tf.where(halves, sizes.eta / 2.0, sizes.eta),
        increases=tf.where(is_checkpoint, 0.0, increases),
        checkpoint_f_max=tf.where(is_checkpoint, f_max, sizes.checkpoint_f_max),
        was_halved=tf.where(is_checkpoint, halves, sizes.was_halved),
    )
    return new_sizes, halves


class RunSettings(NamedTuple):
    """What can change without compiling anew, except for the number of `periods`.

    Attributes:
        epsilon: Radius of the ball.
        rho: Share of the steps between two checkpoints in which f must increase.
        periods: What `checkpoint_periods` returns for the number of steps.
    """

    epsilon: tf.Tensor
    rho: tf.Tensor
    periods: tf.Tensor


class RunState(NamedTuple):
    """The state of one run of Algorithm 1.

    Attributes:
        x: x^(k), not yet evaluated.
        x_previous: x^(k-1), which x^(k) was reached from.
        x_max: The iterate of the highest f so far, f_max.
        sizes: The step sizes.
        best: The most damaging images.
        is_stuck: Bool `(batch,)`: which images had a first gradient of zero.
    """

    x: tf.Tensor
    x_previous: Iterate
    x_max: Iterate
    sizes: StepSizes
    best: Candidate
    is_stuck: tf.Tensor


def run_apgd(
    x_0: tf.Tensor,
    batch: AttackBatch,
    ball: Ball,
    settings: RunSettings,
    evaluate: Callable[[tf.Tensor], tuple[Iterate, Scores]],
    first_iteration: tf.Tensor,
) -> RunState:
    """Runs Algorithm 1, which starts with eta = 2 * epsilon.

    Args:
        x_0: Images of the ball to start from.
        batch: The attacked images.
        ball: The ball around each of them.
        settings: Its radius, and how many steps to take between which checkpoints.
        evaluate: Maps images to their f and its gradient, and to how much damage they do.
        first_iteration: Int32 number that the candidates' iterations count from.
    """
    iterations = tf.shape(settings.periods)[0] - 1

    def project(x: tf.Tensor) -> tf.Tensor:
        change = ball.project(x - batch.images, settings.epsilon)
        # Clipping brings no pixel further from the image, so this stays in the ball.
        return tf.clip_by_value(batch.images + change, 0.0, 1.0)

    def step(k: tf.Tensor, state: RunState) -> tuple[tf.Tensor, RunState]:
        x_k, scores = evaluate(state.x)
        best = better(state.best, make_candidate(state.x, scores, first_iteration + k))
        is_stuck = tf.where(k == 0, is_zero(x_k.gradient), state.is_stuck)

        x_max = choose(x_k.f > state.x_max.f, x_k, state.x_max)
        increased = x_k.f > state.x_previous.f
        sizes, halved = halve_at_checkpoint(
            state.sizes, increased, x_max.f, settings.periods[k], settings.rho
        )
        x_k = choose(halved, x_max, x_k)

        z = project(x_k.x + per_pixel(sizes.eta) * ball.steepest(x_k.gradient))
        alpha = tf.where(k == 0, 1.0, ALPHA)
        x = project(x_k.x + alpha * (z - x_k.x) + (1.0 - alpha) * (x_k.x - state.x_previous.x))
        return k + 1, RunState(x, x_k, x_max, sizes, best, is_stuck)

    # One turn more than steps: the last iterate is evaluated, too.
    _, state = tf.while_loop(
        lambda k, _: k <= iterations, step, (0, _initial_state(x_0, batch, settings))
    )
    return state


def _initial_state(x_0: tf.Tensor, batch: AttackBatch, settings: RunSettings) -> RunState:
    infinite = tf.fill(tf.shape(batch.labels), float("inf"))
    zeros = tf.zeros_like(x_0)
    return RunState(
        x_0,
        x_previous=Iterate(x_0, infinite, zeros),
        x_max=Iterate(x_0, -infinite, zeros),
        sizes=initial_step_sizes(2.0 * settings.epsilon, tf.shape(batch.labels)),
        best=worst_candidate(x_0),
        is_stuck=tf.zeros_like(batch.labels, tf.bool),
    )


class _Loss(NamedTuple):
    """What the attack can maximise.

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


class _Run(NamedTuple):
    """The images of a run and, for each, the class it goes for if the loss is targeted."""

    batch: AttackBatch
    targets: tf.Tensor


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class AutoProjectedGradientDescent(CompiledAttack):
    """Projected gradient ascent with momentum that halves its own step sizes: Auto-PGD, APGD.

    Each image has its own step size, at first twice the radius. A checkpoint that halves it also
    takes the image back to x_max.

    Every run starts at a random point of the ball. The first run takes all its steps for all
    images; the next ones only for those that the model still classifies as labelled. Per image, the
    result is the iterate of all runs with the smallest margin of the label's logit, or the image
    itself if it has none smaller.

    Each gradient is the mean over `gradient_samples` samples of every image, side by side in one
    batch, as in `GradientAttack`: the expectation over transformation, for a model that draws anew
    for each image of a batch. An image is finished when the model is wrong in every sample.

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
        gradient_samples: How often the model is shown each iterate, 20 in AutoAttack's `rand`.
        batch_size: Images attacked at a time.
        seed: Seed of the random starts.
    """

    targeted: ClassVar[bool] = False
    loss: str = "cross_entropy"
    iterations: int = 100
    restarts: int = 1
    target_classes: int = 9
    rho: float = 0.75
    gradient_samples: int = 1

    def __post_init__(self, estimator: TensorFlowV2Classifier) -> None:
        """Prepares the search, which is compiled at the first batch."""
        super().__post_init__(estimator)
        self._compiled_first_scores = self._compiled(
            self._first_scores, "loss", "target_classes", "gradient_samples"
        )
        self._compiled_run = self._compiled(self._run, "norm", "loss", "gradient_samples")
        self._compiled_loss = self._compiled(self._loss, "gradient_samples")

    def _check_params(self) -> None:
        super()._check_params()
        self._check(one_of(_LOSSES), "loss")
        self._check(COUNT, "iterations", "restarts", "target_classes", "gradient_samples")
        self._check(SHARE, "rho")
        check_class_count(self.loss, self.estimator.nb_classes, _LOSSES[self.loss].class_count)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        settings = RunSettings(
            tf.constant(self.epsilon, tf.float32),
            tf.constant(self.rho, tf.float32),
            tf.constant(checkpoint_periods(self.iterations)),
        )
        best, targets = self._compiled_first_scores(batch)
        is_stuck = tf.zeros_like(batch.labels, tf.bool)
        for run in range(self._target_count() * self.restarts):
            advance = functools.partial(self._compiled_run, settings, tf.constant(run))
            part = _Run(batch, targets[:, run // self.restarts])
            is_done = (best.fooled == 1.0) & (run > 0)
            best, is_stuck = advance_unfinished(
                advance, part, (best, is_stuck), is_done, self.batch_size
            )
        loss = self._compiled_loss(best.images, batch.labels)
        return BatchOutcome(best.images, loss, best.iterations, is_stuck)

    def _target_count(self) -> int:
        most = min(self.target_classes, self.estimator.nb_classes - 1)
        return most if _LOSSES[self.loss].targeted else 1

    def _first_scores(self, batch: AttackBatch) -> tuple[Candidate, tf.Tensor]:
        """Returns the images themselves as candidates, and each one's most likely wrong classes."""
        logits, labels = self._logits(self._samples(batch.images)), self._samples(batch.labels)
        samples = (-1, self.gradient_samples, logits.shape[1])
        mean = tf.reduce_mean(tf.reshape(logits, samples), axis=1)
        targets = tf.math.top_k(without_label(mean, batch.labels), self._target_count()).indices
        return make_candidate(batch.images, self._scores(logits, labels), tf.constant(0)), targets

    def _run(
        self,
        settings: RunSettings,
        run: tf.Tensor,
        part: _Run,
        state: tuple[Candidate, tf.Tensor],
    ) -> tuple[Candidate, tf.Tensor]:
        batch, (best, is_stuck), ball = part.batch, state, BALLS[self.norm]
        points = sample_points(ball, batch.images.shape[1:], numbered(batch.seeds, run))
        points *= settings.epsilon * batch.mask
        x_0 = tf.clip_by_value(batch.images + points, 0.0, 1.0)
        first_iteration = run * (tf.shape(settings.periods)[0] - 1)
        evaluate = functools.partial(self._evaluate, part=part)
        end = run_apgd(x_0, batch, ball, settings, evaluate, first_iteration)
        return better(best, end.best), tf.where(run == 0, end.is_stuck, is_stuck)

    def _evaluate(self, x: tf.Tensor, part: _Run) -> tuple[Iterate, Scores]:
        labels, targets = self._samples(part.batch.labels), self._samples(part.targets)
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = self._logits(self._samples(x))
            losses = _LOSSES[self.loss].values(logits, labels, targets)
            f = mean_of_samples(losses, self.gradient_samples)
        gradient = usable_gradient(tape.gradient(f, x), part.batch.mask)
        return Iterate(x, f, gradient), self._scores(logits, labels)

    def _scores(self, logits: tf.Tensor, labels: tf.Tensor) -> Scores:
        # By the margin, which compares what runs of different targets have found.
        losses, samples = -margin(logits, labels), self.gradient_samples
        return score(losses, logits, labels, targeted=False, samples=samples)

    def _loss(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        losses = stable_cross_entropy(self._logits(self._samples(images)), self._samples(labels))
        return mean_of_samples(losses, self.gradient_samples)

    def _samples(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns each row `gradient_samples` times, next to each other."""
        return tf.repeat(rows, self.gradient_samples, axis=0)
