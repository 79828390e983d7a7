"""Projected gradient ascent that chooses its own step sizes: APGD."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_options import COUNT, NORM, POSITIVE, SEED, SHARE, Option
from sfm_tf.attacks.candidates import Candidate, Evaluation, better, evaluate, make_candidate
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
from sfm_tf.attacks.norm_balls import BALLS, sample_points
from sfm_tf.attacks.paced_ascent import Limits, Point, ascend
from sfm_tf.attacks.seeds import numbered
from sfm_tf.attacks.step_pacing import checkpoint_windows
from sfm_tf.attacks.unfinished import advance_unfinished


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
