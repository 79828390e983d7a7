"""Random noise, as a bound that every attack by gradient must beat."""

import dataclasses
from typing import Any

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    COUNT,
    AttackBatch,
    BatchOutcome,
    CompiledAttack,
    better,
    make_candidate,
    one_of,
    score,
    worst_candidate,
)
from sfm_tf.attacks.norm_balls import BALLS, sample_points
from sfm_tf.attacks.seeds import numbered
from sfm_tf.models.logit_losses import stable_cross_entropy


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class UniformNoise(CompiledAttack):
    """Draws points of the ball and keeps the most damaging of each image.

    This is the weakest attack, and a check of the others: a gradient attack that fools less often
    than many random draws follows useless gradients (Athalye et al., "Obfuscated gradients give a
    false sense of security", 2018, section 3.1). In an outcome, `iterations` is the number of the
    draw that was kept, from 1.

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

    draws: int = 100
    points: str = "uniform"

    def __post_init__(self, estimator: TensorFlowV2Classifier) -> None:
        """Prepares the search, which is compiled at the first batch."""
        super().__post_init__(estimator)
        self._compiled_search = self._compiled(self._search, "norm", "points", "targeted")

    def _check_params(self) -> None:
        super()._check_params()
        self._check(COUNT, "draws")
        self._check(one_of(("uniform", "extreme")), "points")

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        numbers = (tf.constant(self.epsilon, tf.float32), tf.constant(self.draws, tf.int32))
        return self._compiled_search(batch, *numbers)

    def _search(self, batch: AttackBatch, epsilon: tf.Tensor, draws: tf.Tensor) -> BatchOutcome:
        def draw(done: tf.Tensor, best: Any) -> Any:
            points = epsilon * self._draw_points(batch, done)
            images = tf.clip_by_value(batch.images + batch.mask * points, 0.0, 1.0)
            logits = self._logits(images)
            losses = stable_cross_entropy(logits, batch.labels)
            scores = score(losses, logits, batch.labels, self.targeted)
            return done + 1, better(best, make_candidate(images, scores, done + 1))

        _, best = tf.while_loop(
            lambda done, _: done < draws, draw, (0, worst_candidate(batch.images))
        )
        loss = -best.objective if self.targeted else best.objective
        return BatchOutcome(best.images, loss, best.iterations, tf.zeros_like(loss, tf.bool))

    def _draw_points(self, batch: AttackBatch, done: tf.Tensor) -> tf.Tensor:
        ball = BALLS[self.norm]
        drawn = sample_points(ball, batch.images.shape[1:], numbered(batch.seeds, done))
        return ball.steepest(drawn) if self.points == "extreme" else drawn
