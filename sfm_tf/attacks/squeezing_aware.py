"""An attack that knows the feature squeezing detector and stays below its threshold."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from sfm_tf.attacks.attack import (
    NOT_NEGATIVE,
    AttackBatch,
    BatchOutcome,
    Scores,
    ValueKind,
    mean_of_samples,
    one_of,
    score,
)
from sfm_tf.attacks.pgd import GradientAttack
from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.chain import SURROGATES, Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.squeezers import LARGEST_SCORE, default_squeezers, squeezed_distances


def _is_squeezers(value: Any) -> bool:
    if not isinstance(value, tuple) or not all(isinstance(spec, str) for spec in value):
        return False
    try:
        return all(map(parse_preprocessor, value))
    except SfmError:
        return False


_SQUEEZERS = ValueKind(_is_squeezers, "a tuple of specifications such as 'bit_depth_5'")
_THRESHOLD = ValueKind(
    lambda value: NOT_NEGATIVE.is_valid(value) and value <= LARGEST_SCORE, "a number from 0 to 2"
)


class Detector(NamedTuple):
    """The numbers of the detector's part of the objective, float32 scalars.

    Attributes:
        distance_weight: Weight of the detector's score.
        threshold: The score above which the detector flags an image.
    """

    distance_weight: tf.Tensor
    threshold: tf.Tensor


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class SqueezingAwareGradientDescent(GradientAttack):
    """Projected gradient descent that fools a classifier and its feature squeezing detector.

    It maximises the loss of F(x) and, while F is fooled, loss - distance_weight * d with
    d = max_i ||p(x) - p(s_i(x))||_1, p the softmax of F and s_i the squeezers: an attacker who
    knows the detector wants predictions that are wrong and that squeezing does not change (He et
    al. 2017, "Adversarial example defenses: ensembles of weak defenses are not strong"; Tramer et
    al. 2020, "On adaptive attacks to adversarial example defenses"). From the first step on, d
    would hold images back where they are right and squeezing agrees. Gradients go through the
    squeezers by their surrogates (BPDA).

    `keep_best` and `stop_when_fooled` ask for an image that fools the classifier and is not
    flagged; next best is one that fools it and is flagged. With the default threshold of 2 nothing
    is ever flagged, and what counts is the classifier.

    Args:
        estimator: TensorFlow classifier of ART, which the detector guards.
        distance_weight: Weight of the detector's score d, which is in [0, 2], beside the loss.
        threshold: Score above which the detector flags an image.
        squeezers: Specifications of the s_i; empty for `DEFAULT_SQUEEZERS` of such images.
        surrogate: Stand-in for the gradient of the squeezers, `identity` or `smooth`.
        **options: Those of `GradientAttack`; by default with a random start, `keep_best`
            and the stable cross-entropy.

    Raises:
        SfmError: If an option is not allowed.
    """

    distance_weight: float = 3.0
    threshold: float = LARGEST_SCORE
    squeezers: tuple[str, ...] = ()
    surrogate: str = "smooth"
    random_start: bool = True
    keep_best: bool = True
    loss: str = "stable_cross_entropy"

    graph_options: ClassVar[tuple[str, ...]] = (
        *GradientAttack.graph_options,
        "squeezers",
        "surrogate",
    )

    def _check_params(self) -> None:
        super()._check_params()
        self._check(NOT_NEGATIVE, "distance_weight")
        self._check(_THRESHOLD, "threshold")
        self._check(_SQUEEZERS, "squeezers")
        self._check(one_of(SURROGATES), "surrogate")

    def _initial_memory(self, images: tf.Tensor) -> Detector:
        del images
        return Detector(
            tf.constant(self.distance_weight, tf.float32), tf.constant(self.threshold, tf.float32)
        )

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        outcome = super()._attack_batch(batch)
        # The objective is not the loss that an outcome is to tell.
        return outcome._replace(loss=self._losses(self._logits(outcome.images), batch.labels))

    def _scores(self, views: tf.Tensor, batch: AttackBatch, memory: Detector) -> Scores:
        logits, labels = self._logits(views), self._samples(batch.labels)
        samples = self.gradient_samples
        losses = self._losses(logits, labels)
        scores = score(losses, logits, labels, self.targeted, samples)
        distances = squeezed_distances(self._logits, self._squeezers(), views, logits)
        passes = tf.cast(distances <= memory.threshold, tf.float32)
        # Before it is fooled, a prediction that squeezing agrees with is the right one.
        penalties = memory.distance_weight * mean_of_samples(distances, samples) * scores.fooled
        # A success that is flagged is half of one: better than none, and the search goes on.
        successes = scores.fooled * (1.0 + mean_of_samples(passes, samples)) / 2.0
        return Scores(scores.objective - penalties, successes)

    def _squeezers(self) -> Sequence[Preprocessor]:
        if not self.squeezers:
            return default_squeezers(self.estimator.input_shape[-1], self.surrogate)
        return [parse_preprocessor(spec, self.surrogate) for spec in self.squeezers]
