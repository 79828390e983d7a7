"""AutoAttack: four attacks of different kinds, one after another."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.apgd import AutoProjectedGradientDescent
from sfm_tf.attacks.attack import (
    COUNT,
    AttackBatch,
    AttackOutcome,
    CompiledAttack,
    bucket_size,
    fill_up,
    join_outcomes,
    mean_of_samples,
    one_of,
    perturbation_sizes,
    score,
)
from sfm_tf.attacks.fab import FastAdaptiveBoundary
from sfm_tf.attacks.square import SquareAttack
from sfm_tf.errors import SfmError
from sfm_tf.models.logit_losses import margin, stable_cross_entropy

CLEAN = "clean"
"""In place of an attack's name: the model is wrong about the image itself."""

STANDING = ""
"""In place of an attack's name: none has broken the image."""

_NAME_TYPE = "<U16"


class Best(NamedTuple):
    """The most damaging images so far, each with what the model makes of it; arrays `(batch, ...)`.

    Attributes:
        images: Float32 in [0, 1], `(batch, height, width, channels)`.
        iterations: Int32: steps of the attack that found the image.
        attacks: Name of that attack.
        fooled: Float32 in [0, 1]: share of the samples in which the label is not predicted.
        objective: Float32: minus the margin of the label.
        loss: Float32: the cross-entropy.
    """

    images: np.ndarray
    iterations: np.ndarray
    attacks: np.ndarray
    fooled: np.ndarray
    objective: np.ndarray
    loss: np.ndarray


def keep_better(best: Best, rows: np.ndarray, found: Best, is_allowed: np.ndarray) -> None:
    """Replaces images by those that fool the model more, or as much and by a wider margin.

    Args:
        best: The most damaging images so far; changed in place.
        rows: Indices into it of the images that were attacked.
        found: What an attack made of them.
        is_allowed: Bool of the rows' shape: which of these count at all.
    """
    fooled, objective = best.fooled[rows], best.objective[rows]
    is_higher = (found.fooled == fooled) & (found.objective > objective)
    is_better = is_allowed & ((found.fooled > fooled) | is_higher)
    for array, new in zip(best, found, strict=True):
        array[rows[is_better]] = new[is_better]


class _Part(NamedTuple):
    """One of the attacks, with those of its options that AutoAttack has none for."""

    attack: type[CompiledAttack]
    options: Mapping[str, Any]


_PARTS: Mapping[str, _Part] = {
    "apgd_ce": _Part(AutoProjectedGradientDescent, {"loss": "cross_entropy", "restarts": 1}),
    "apgd_dlr": _Part(AutoProjectedGradientDescent, {"loss": "dlr", "restarts": 1}),
    "apgd_t": _Part(AutoProjectedGradientDescent, {"loss": "targeted_dlr", "restarts": 1}),
    "fab_t": _Part(FastAdaptiveBoundary, {"restarts": 1}),
    "square": _Part(SquareAttack, {"stretch_schedule": False}),
}


class _Version(NamedTuple):
    """What is run.

    Attributes:
        parts: Names of attacks, cheap ones first.
        samples: How often the model is shown an image before it is judged.
        class_count: Fewest classes that all parts are defined for.
    """

    parts: tuple[str, ...]
    samples: int
    class_count: int


_VERSIONS: Mapping[str, _Version] = {
    "standard": _Version(("apgd_ce", "apgd_t", "fab_t", "square"), 1, 4),
    "rand": _Version(("apgd_ce", "apgd_dlr"), 20, 3),
}


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class AutoAttack(CompiledAttack):
    """Runs four attacks, each on the images that those before it left standing.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020, as published. Version `standard` is APGD on the cross-entropy,
    then targeted APGD on the DLR loss, targeted FAB and Square. Version `rand`, for models that
    draw at random, is APGD on the cross-entropy and on the DLR loss, with 20 samples per gradient.
    Iterations, target classes and queries are the published ones unless set otherwise. ART's class
    of this name is another attack: it has DeepFool for FAB, nothing targeted, and five restarts.

    An image that the model gets wrong without an attack stays as it is. If no attack breaks an
    image, the most damaging one found is returned, where the authors' code returns the image
    itself. FAB, which has no radius, counts if it ends within `epsilon`. In `rand`, the model is
    shown each image 20 more times to judge it; the image is finished once all of them are wrong.

    An outcome's iterations are those of the attack that found the image, and its zero gradients are
    APGD's. `run_named` tells the attacks. The few images that are left of several batches are
    attacked together, so `batches` yields several of them at a time.

    Args:
        estimator: TensorFlow classifier of ART that returns logits, of at least four classes for
            `standard` and three for `rand`: the DLR loss is not defined for fewer.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        version: `standard` or `rand`.
        iterations: Number of steps of a run of APGD and FAB.
        target_classes: How many classes the targeted attacks go for.
        queries: How often Square may ask the model about each image.
        batches_at_once: How many batches are pooled.
        batch_size: Images attacked at a time.
        seed: Seed of everything random.
    """

    targeted: ClassVar[bool] = False
    version: str = "standard"
    iterations: int = 100
    target_classes: int = 9
    queries: int = 5000
    batches_at_once: int = 8

    def __post_init__(self, estimator: TensorFlowV2Classifier) -> None:
        """Sets up; each attack is made when it first has something to do."""
        super().__post_init__(estimator)
        self._attacks: dict[str, CompiledAttack] = {}
        self._compiled_judge = self._compiled(self._judge_batch, "version")

    def _check_params(self) -> None:
        super()._check_params()
        self._check(one_of(_VERSIONS), "version")
        self._check(COUNT, "iterations", "target_classes", "queries", "batches_at_once")
        class_count, expected = self.estimator.nb_classes, _VERSIONS[self.version].class_count
        if class_count < expected:
            raise SfmError(
                f"AutoAttack's version {self.version!r} needs at least {expected} classes for its "
                f"DLR loss; found {class_count}. Attack the model with APGD on the cross-entropy "
                "and with Square instead."
            )

    def run_named(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> tuple[AttackOutcome, np.ndarray]:
        """Attacks every image and tells by which attack it was broken; see `batches`.

        Returns:
            The outcome, and an array `(batch,)` of names: `apgd_ce`, `apgd_dlr`, `apgd_t`, `fab_t`
            or `square` where the model is wrong about that attack's image, in `rand` in at least
            half of the samples; `CLEAN` or `STANDING` elsewhere.
        """
        outcomes, names = zip(*self._pools(images, labels, mask, positions), strict=True)
        return join_outcomes(outcomes), np.concatenate(names)

    def batches(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> Iterator[AttackOutcome]:
        """Yields outcomes as every attack does, of `batches_at_once` batches at a time."""
        for outcome, _ in self._pools(images, labels, mask, positions):
            yield outcome

    def _pools(self, *arguments: Any) -> Iterator[tuple[AttackOutcome, np.ndarray]]:
        inputs = self._checked_inputs(*arguments)
        size = self.batches_at_once * self.batch_size
        for start in range(0, len(inputs.images), size):
            pool = AttackBatch(*(array[start : start + size] for array in inputs))
            outcome, names = self._attack_batch(pool)
            self._check_outcome(pool, outcome)
            yield outcome, names

    def _attack_batch(self, batch: AttackBatch) -> tuple[AttackOutcome, np.ndarray]:
        """Attacks images of any number; the batch is of arrays, as the attacks take them."""
        zeros = np.zeros(len(batch.images), np.int32)
        best, zero_gradient = self._judge(batch, batch.images.copy(), zeros, CLEAN), zeros > 0
        parts = _VERSIONS[self.version].parts
        for name in parts:
            rows = np.flatnonzero(best.fooled < 1.0)
            if len(rows) == 0:
                break
            attack, left = self._part(name), AttackBatch(*(array[rows] for array in batch))
            outcome = attack.run(left.images, left.labels, left.mask, left.seeds[:, 1])
            found = self._judge(left, outcome.images, outcome.iterations, name)
            keep_better(best, rows, found, self._is_allowed(attack, left.images, outcome))
            if name == parts[0]:
                zero_gradient[rows] = outcome.zero_gradient
        names = np.where(best.fooled >= 0.5, best.attacks, STANDING)
        return AttackOutcome(best.images, best.loss, best.iterations, zero_gradient), names

    def _part(self, name: str) -> CompiledAttack:
        attack, fixed = _PARTS[name]
        values = {option: getattr(self, option) for option in self.attack_params}
        values["gradient_samples"] = _VERSIONS[self.version].samples
        names = {field.name for field in dataclasses.fields(attack)}
        shared = {option: value for option, value in values.items() if option in names}
        if name not in self._attacks:
            self._attacks[name] = attack(self.estimator, **shared, **fixed)
        self._attacks[name].set_params(**shared)
        return self._attacks[name]

    def _is_allowed(
        self, attack: CompiledAttack, images: np.ndarray, outcome: AttackOutcome
    ) -> np.ndarray:
        if math.isfinite(attack.epsilon):
            return outcome.found
        sizes = perturbation_sizes(images, outcome.images, float(self.norm))
        return outcome.found & (sizes <= self.epsilon)

    def _judge(
        self, batch: AttackBatch, images: np.ndarray, iterations: np.ndarray, attack: str
    ) -> Best:
        """Returns what an attack made of a batch, with what the model makes of it."""
        count = len(images)
        size = bucket_size(count, self.batch_size)
        judged = []
        for start in range(0, count, size):
            rows = fill_up(np.arange(start, min(start + size, count)), size)
            tensors = self._compiled_judge(
                tf.constant(images[rows]), tf.constant(batch.labels[rows])
            )
            judged.append([tensor.numpy()[: count - start] for tensor in tensors])
        attacks = np.full(count, attack, _NAME_TYPE)
        return Best(images, iterations, attacks, *map(np.concatenate, zip(*judged, strict=True)))

    def _judge_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        samples = _VERSIONS[self.version].samples
        logits = self._logits(tf.repeat(images, samples, axis=0))
        labels = tf.repeat(labels, samples)
        scores = score(-margin(logits, labels), logits, labels, targeted=False, samples=samples)
        loss = mean_of_samples(stable_cross_entropy(logits, labels), samples)
        return scores.fooled, scores.objective, loss
