"""Re-draws by tiny noise: the attack on defences that draw from the image, or round it."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    COUNT,
    POSITIVE,
    AttackBatch,
    AttackOutcome,
    BatchOutcome,
    Candidate,
    CompiledAttack,
    better,
    bucket_size,
    fill_up,
    make_candidate,
    put,
    score,
    take,
)
from sfm_tf.attacks.norm_balls import BALLS, sample_points
from sfm_tf.attacks.seeds import numbered
from sfm_tf.models.input_checks import check_images
from sfm_tf.models.logit_losses import stable_cross_entropy
from sfm_tf.settings import PIXEL_LEVELS

NOISE = 0.26
"""Largest change of a value in 1/255: too small to see, as it is lost when an image is stored."""


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Redraw(CompiledAttack):
    """Adds noise of less than half a grey level, again and again, until the model is fooled.

    A defence that draws numbers from the image itself draws anew at each such change, and one that
    rounds may round the other way. So an image that nearly fools it, such as what another attack
    left, soon meets a draw that fails. The attacker needs no gradient, only the predicted class. He
    need not know how the model draws, so a secret key does not stop him, and in the white box he
    has the key, too (Kerckhoffs 1883). Athalye et al., "Obfuscated gradients give a false sense of
    security", 2018, section 4.2, broke random defences by gradients averaged over draws; where the
    draws follow from the image, this search suffices.

    Each image keeps the first re-draw that fools the model, or where none does, the image of the
    highest loss. It is never less harmful than where it started. In an outcome, `iterations` is the
    number of the re-draw that was kept, 0 for the start.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        draws: Number of re-draws of each image.
        noise: Largest change of a value by one of them. Each is uniform in both directions, from
            the start and not from the re-draw before; what leaves ball or range is put back.
        targeted: Whether labels are classes to reach rather than to leave.
        batch_size: Images attacked at a time.
        seed: Seed of the noise.
    """

    draws: int = 30
    noise: float = NOISE / PIXEL_LEVELS

    def __post_init__(self, estimator: TensorFlowV2Classifier) -> None:
        """Prepares the search, which is compiled at the first batch."""
        super().__post_init__(estimator)
        self._starts: dict[int, np.ndarray] = {}
        self._compiled_start = self._compiled(self._start, "targeted")
        self._compiled_search = self._compiled(self._search, "norm", "targeted")

    def _check_params(self) -> None:
        super()._check_params()
        self._check(COUNT, "draws")
        self._check(POSITIVE, "noise")

    def batches(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        positions: np.ndarray | None = None,
        starts: np.ndarray | None = None,
    ) -> Iterator[AttackOutcome]:
        """Attacks batch after batch, as `CompiledAttack.batches` says.

        Args:
            images: As there: the middle of the ball.
            labels: As there.
            mask: As there.
            positions: As there.
            starts: Where each search starts, of the images' shape, inside the ball; the images
                themselves by default.

        Yields:
            The same as there.
        """
        starts = check_images(images if starts is None else starts, self.estimator.input_shape)
        places = range(len(starts)) if positions is None else positions
        self._starts = dict(zip(map(int, places), starts, strict=True))
        yield from super().batches(images, labels, mask, positions)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        starts = np.stack([self._starts[position] for position in batch.seeds[:, 1].numpy()])
        best = self._compiled_start(batch, tf.constant(starts))
        rows = np.flatnonzero(best.fooled.numpy() < 1.0)
        if len(rows):
            filled = fill_up(rows, bucket_size(len(rows), self.batch_size))
            numbers = (
                tf.constant(self.epsilon, tf.float32),
                tf.constant(self.noise, tf.float32),
                tf.constant(self.draws, tf.int32),
            )
            found = self._compiled_search(take(batch, filled), take(best, filled), *numbers)
            best = put(best, rows, found)
        loss = -best.objective if self.targeted else best.objective
        return BatchOutcome(best.images, loss, best.iterations, tf.zeros_like(loss, tf.bool))

    def _start(self, batch: AttackBatch, starts: tf.Tensor) -> Candidate:
        return self._candidate(starts, batch, tf.constant(0))

    def _search(
        self,
        batch: AttackBatch,
        start: Candidate,
        epsilon: tf.Tensor,
        noise: tf.Tensor,
        draws: tf.Tensor,
    ) -> Candidate:
        def is_unfinished(done: tf.Tensor, best: Candidate) -> tf.Tensor:
            return (done < draws) & tf.reduce_any(best.fooled < 1.0)

        def draw(done: tf.Tensor, best: Candidate) -> tuple[tf.Tensor, Candidate]:
            # The noise is bounded in each value, whatever the norm of the ball.
            seeds = numbered(batch.seeds, done)
            drawn = sample_points(BALLS[math.inf], batch.images.shape[1:], seeds)
            moved = start.images + batch.mask * noise * drawn
            change = tf.clip_by_value(moved, 0.0, 1.0) - batch.images
            inside = batch.images + BALLS[self.norm].project(change, epsilon)
            # Adding the perturbation can round past the ends of [0, 1].
            images = tf.clip_by_value(inside, 0.0, 1.0)
            candidate = self._candidate(images, batch, done + 1)
            # The first one that fools is kept.
            objective = tf.where(best.fooled < 1.0, candidate.objective, -float("inf"))
            return done + 1, better(best, candidate._replace(objective=objective))

        _, best = tf.while_loop(is_unfinished, draw, (0, start))
        return best

    def _candidate(self, images: tf.Tensor, batch: AttackBatch, iteration: tf.Tensor) -> Candidate:
        logits = self._logits(images)
        losses = stable_cross_entropy(logits, batch.labels)
        scores = score(losses, logits, batch.labels, self.targeted)
        return make_candidate(images, scores, iteration)
