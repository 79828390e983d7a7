"""An attack that knows the feature squeezing detector and stays below its threshold."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from sfm_tf.attacks.attack import (
    NOT_NEGATIVE,
    AttackBatch,
    BatchOutcome,
    Evaluation,
    Option,
    evaluate,
)
from sfm_tf.attacks.pgd import IteratedGradientAttack
from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.chain import SURROGATES, parse_preprocessor
from sfm_tf.preprocessors.squeezers import LARGEST_SCORE, default_squeezers, squeezed_distances


def _is_squeezers(value: Any) -> bool:
    if not isinstance(value, tuple) or not all(isinstance(spec, str) for spec in value):
        return False
    try:
        return all(map(parse_preprocessor, value))
    except SfmError:
        return False


_SQUEEZERS = Option(_is_squeezers, "a tuple of specifications such as 'bit_depth_5'")
_SURROGATE = Option(
    lambda value: isinstance(value, str) and value in SURROGATES, f"one of {', '.join(SURROGATES)}"
)
_THRESHOLD = Option(
    lambda value: NOT_NEGATIVE.is_valid(value) and value <= LARGEST_SCORE, "a number from 0 to 2"
)


class _WatchedMode(NamedTuple):
    """What the compiled loop is specialised for: that of every gradient attack, and the detector.

    Attributes:
        norm: As there.
        loss: As there.
        targeted: As there.
        keep_best: As there.
        stop_when_fooled: As there.
        gradient_samples: As there.
        squeezers: Specifications of the squeezers.
        surrogate: Stand-in for their gradients.
    """

    norm: float | str
    loss: str
    targeted: bool
    keep_best: bool
    stop_when_fooled: bool
    gradient_samples: int
    squeezers: tuple[str, ...]
    surrogate: str


class _WatchedBatch(NamedTuple):
    """An `AttackBatch`, field by field, and per image what the detector's part of it needs.

    Attributes:
        images: As there.
        labels: As there.
        mask: As there: the pixels that may change.
        seeds: As there.
        distance_weights: Float32 `(batch,)`: weight of the detector's score.
        thresholds: Float32 `(batch,)`: the score above which the detector flags an image.
    """

    images: tf.Tensor
    labels: tf.Tensor
    mask: tf.Tensor
    seeds: tf.Tensor
    distance_weights: tf.Tensor
    thresholds: tf.Tensor


class SqueezingAwareGradientDescent(IteratedGradientAttack):
    """Projected gradient descent that fools a classifier and its feature squeezing detector.

    It climbs the loss of F(x) and, while F is fooled, loss - distance_weight * d with
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
        **options: Those of `IteratedGradientAttack`; by default with a random start, `keep_best`
            and the stable cross-entropy.

    Raises:
        SfmError: If an option is not allowed.
    """

    options: ClassVar[Mapping[str, Option]] = {
        **IteratedGradientAttack.options,
        "distance_weight": NOT_NEGATIVE,
        "threshold": _THRESHOLD,
        "squeezers": _SQUEEZERS,
        "surrogate": _SURROGATE,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **IteratedGradientAttack.defaults,
        "random_start": True,
        "keep_best": True,
        "loss": "stable_cross_entropy",
        "distance_weight": 3.0,
        "threshold": LARGEST_SCORE,
        "squeezers": (),
        "surrogate": "smooth",
    }

    distance_weight: float
    threshold: float
    squeezers: tuple[str, ...]
    surrogate: str

    def _mode(self) -> _WatchedMode:
        squeezers = self.squeezers or _defaults(self.estimator.input_shape[-1])
        return _WatchedMode(*super()._mode(), squeezers, self.surrogate)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        weights, thresholds = (
            tf.fill(tf.shape(batch.labels), tf.constant(value, tf.float32))
            for value in (self.distance_weight, self.threshold)
        )
        outcome = super()._attack_batch(_WatchedBatch(*batch, weights, thresholds))
        # What was climbed is not the loss that an outcome is to tell.
        return outcome._replace(loss=self._losses(self._logits(outcome.images), batch.labels))

    def _evaluate(
        self,
        images: tf.Tensor,
        batch: _WatchedBatch,
        mode: _WatchedMode,
        view: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    ) -> Evaluation:
        looks = mode.gradient_samples
        views, labels = view(tf.repeat(images, looks, axis=0)), tf.repeat(batch.labels, looks)
        logits = self._logits(views)
        evaluation = evaluate(self._losses(logits, labels), logits, labels, mode.targeted, looks)
        squeezers = [parse_preprocessor(spec, mode.surrogate) for spec in mode.squeezers]
        distances = squeezed_distances(self._logits, squeezers, views, logits)
        passes = tf.cast(distances <= tf.repeat(batch.thresholds, looks), tf.float32)
        # Before it is fooled, a prediction that squeezing agrees with is the right one.
        penalties = batch.distance_weights * _mean_of_looks(distances, looks) * evaluation.fooled
        # A success that is flagged is half of one: better than none, and not yet done with.
        successes = evaluation.fooled * (1.0 + _mean_of_looks(passes, looks)) / 2.0
        return Evaluation(evaluation.objective - penalties, successes)


def _defaults(channels: int) -> tuple[str, ...]:
    return tuple(squeezer.spec for squeezer in default_squeezers(channels))


def _mean_of_looks(values: tf.Tensor, looks: int) -> tf.Tensor:
    """Returns per image the mean of its looks, which lie side by side."""
    return tf.reduce_mean(tf.reshape(values, (-1, looks)), axis=1)
