"""Random noise, as a bound that every attack by gradient must beat."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    COUNT,
    AttackBatch,
    BatchOutcome,
    CompiledAttack,
    Option,
    better,
    evaluate,
    make_candidate,
    worst_candidate,
)
from sfm_tf.attacks.norm_balls import BALLS, Ball, sample_points
from sfm_tf.attacks.seeds import numbered
from sfm_tf.models.logit_losses import stable_cross_entropy

_POINTS = ("uniform", "extreme")


class _Mode(NamedTuple):
    """What the compiled loop is specialised for."""

    norm: float | str
    points: str
    targeted: bool


class UniformNoise(CompiledAttack):
    """Draws points of the ball and keeps the most damaging of each image.

    The weakest attack there is, asked for as a check of the others: a gradient attack that fools
    less often than many random draws follows gradients that lead nowhere (Athalye et al.,
    "Obfuscated gradients give a false sense of security", 2018, section 3.1). In an outcome,
    `iterations` is the number of the draw that was kept, from 1.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        draws: Number of points tried for each image.
        points: `uniform` for points of the ball; `extreme` for those that are not between others:
            every pixel value moved by epsilon up or down, or in L2 the sphere.
        targeted: Whether labels are classes to reach rather than to leave.
        batch_size: Images attacked at a time.
        seed: Seed of the draws.
    """

    options: ClassVar[Mapping[str, Option]] = {
        **CompiledAttack.options,
        "draws": COUNT,
        "points": Option(
            lambda value: isinstance(value, str) and value in _POINTS,
            f"one of {', '.join(_POINTS)}",
        ),
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **CompiledAttack.defaults,
        "draws": 100,
        "points": "uniform",
    }

    draws: int
    points: str

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Sets the options and prepares the loop, which is compiled at the first batch."""
        super().__init__(estimator, **options)
        # A partial, because TensorFlow counts compilations by the code of a function.
        self._compiled_search = tf.function(functools.partial(self._search), autograph=False)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        mode = _Mode(self.norm, self.points, self.targeted)
        limits = (tf.constant(self.epsilon, tf.float32), tf.constant(self.draws, tf.int32))
        return self._compiled_search(batch, *limits, mode)

    def _search(
        self, batch: AttackBatch, epsilon: tf.Tensor, draws: tf.Tensor, mode: _Mode
    ) -> BatchOutcome:
        def draw(done: tf.Tensor, best: Any) -> Any:
            points = epsilon * _draw_points(BALLS[mode.norm], mode.points, batch, done)
            images = tf.clip_by_value(batch.images + batch.mask * points, 0.0, 1.0)
            logits = self._logits(images)
            losses = stable_cross_entropy(logits, batch.labels)
            evaluation = evaluate(losses, logits, batch.labels, mode.targeted)
            return done + 1, better(best, make_candidate(images, evaluation, done + 1))

        _, best = tf.while_loop(
            lambda done, _: done < draws, draw, (0, worst_candidate(batch.images))
        )
        loss = -best.objective if mode.targeted else best.objective
        return BatchOutcome(best.images, loss, best.iterations, tf.zeros_like(loss, tf.bool))


def _draw_points(ball: Ball, points: str, batch: AttackBatch, done: tf.Tensor) -> tf.Tensor:
    drawn = sample_points(ball, batch.images.shape[1:], numbered(batch.seeds, done))
    return ball.steepest(drawn) if points == "extreme" else drawn
