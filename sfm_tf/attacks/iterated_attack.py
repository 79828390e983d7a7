"""Gradient attacks of many steps, in several runs and without the images that are done with."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from sfm_tf.attacks.attack_options import COUNT, FLAG, POSITIVE, Option
from sfm_tf.attacks.buckets import bucket_size, fill_up, put, take
from sfm_tf.attacks.candidates import Candidate, better
from sfm_tf.attacks.compiled_attack import AttackBatch, BatchOutcome
from sfm_tf.attacks.gradient_attack import Ascent, GradientAttack, Limits, Schedule


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
