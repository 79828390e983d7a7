"""AutoAttack: four attacks of different kinds, one after another."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.apgd import AutoProjectedGradientDescent
from sfm_tf.attacks.attack import (
    COUNT,
    NORM,
    POSITIVE,
    SEED,
    AttackBatch,
    AttackOutcome,
    CompiledAttack,
    Option,
    bucket_size,
    evaluate,
    fill_up,
    join_outcomes,
    perturbation_sizes,
)
from sfm_tf.attacks.fab import FastAdaptiveBoundary
from sfm_tf.attacks.square import SquareAttack
from sfm_tf.errors import SfmError
from sfm_tf.models.input_checks import check_images, check_logits, check_mask
from sfm_tf.models.logit_losses import margin, stable_cross_entropy

_NAME_LENGTH = 16


class Verdict(NamedTuple):
    """What the model makes of images.

    Attributes:
        fooled: Float32 `(batch,)` in [0, 1]: share of the looks in which the label is not
            predicted.
        objective: Float32 `(batch,)`: minus the margin of the label.
        loss: Float32 `(batch,)`: the cross-entropy.
    """

    fooled: np.ndarray
    objective: np.ndarray
    loss: np.ndarray


class WorstImages(NamedTuple):
    """The most damaging images so far, with the fields of `AttackOutcome` and of `Verdict`.

    Attributes:
        images: As in `AttackOutcome`.
        loss: As in `Verdict`.
        iterations: As in `AttackOutcome`, of the attack that the image is of.
        zero_gradient: As in `AttackOutcome`.
        fooled: As in `Verdict`.
        objective: As in `Verdict`.
        names: `(batch,)`: whom the image is of.
    """

    images: np.ndarray
    loss: np.ndarray
    iterations: np.ndarray
    zero_gradient: np.ndarray
    fooled: np.ndarray
    objective: np.ndarray
    names: np.ndarray

    def outcome(self) -> AttackOutcome:
        """Returns the images with their diagnostics alone."""
        return AttackOutcome(self.images, self.loss, self.iterations, self.zero_gradient)


def begin_with(images: np.ndarray, verdict: Verdict, name: str) -> WorstImages:
    """Returns the images before any attack.

    Args:
        images: Float32 in [0, 1], `(batch, height, width, channels)`.
        verdict: What the model makes of them.
        name: What stands for an attack's name.
    """
    iterations = np.zeros(len(images), np.int32)
    return WorstImages(
        images.copy(),
        verdict.loss.copy(),
        iterations,
        np.zeros(len(images), bool),
        verdict.fooled.copy(),
        verdict.objective.copy(),
        np.full(len(images), name, f"<U{_NAME_LENGTH}"),
    )


def keep_worse(
    worst: WorstImages,
    rows: np.ndarray,
    outcome: AttackOutcome,
    verdict: Verdict,
    is_allowed: np.ndarray,
    name: str,
) -> None:
    """Replaces images by those that fool the model more, or as much and by a wider margin.

    Args:
        worst: The most damaging images so far; changed in place.
        rows: Indices into it of the images that were attacked.
        outcome: What the attack made of them.
        verdict: What the model makes of that.
        is_allowed: Bool of the rows' shape: which of its images count at all.
        name: Name of the attack, of at most 16 letters.
    """
    fooled_before, objective_before = worst.fooled[rows], worst.objective[rows]
    climbs = (verdict.fooled == fooled_before) & (verdict.objective > objective_before)
    replaces = is_allowed & ((verdict.fooled > fooled_before) | climbs)
    chosen = rows[replaces]
    worst.images[chosen] = outcome.images[replaces]
    worst.iterations[chosen] = outcome.iterations[replaces]
    worst.fooled[chosen] = verdict.fooled[replaces]
    worst.objective[chosen] = verdict.objective[replaces]
    worst.loss[chosen] = verdict.loss[replaces]
    worst.names[chosen] = name


CLEAN = "clean"
"""In place of an attack's name: the model is wrong about the image itself."""

STANDING = ""
"""In place of an attack's name: none has broken the image."""


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
        looks: How often the model looks at an image before it is judged.
        class_count: Fewest classes that all parts are defined for.
    """

    parts: tuple[str, ...]
    looks: int
    class_count: int


_VERSIONS: Mapping[str, _Version] = {
    "standard": _Version(("apgd_ce", "apgd_t", "fab_t", "square"), 1, 4),
    "rand": _Version(("apgd_ce", "apgd_dlr"), 20, 3),
}
_VERSION = Option(
    lambda value: isinstance(value, str) and value in _VERSIONS, f"one of {', '.join(_VERSIONS)}"
)


class AutoAttack(CompiledAttack):
    """Runs four attacks, each on the images that those before it left standing.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020, as published. Version `standard` is APGD on the cross-entropy,
    then targeted APGD on the DLR loss, targeted FAB and Square. Version `rand`, for models that
    draw at random, is APGD on the cross-entropy and on the DLR loss, with 20 looks per gradient.
    Iterations, target classes and queries are the published ones unless set otherwise. ART's class
    of this name is another attack: it has DeepFool for FAB, nothing targeted, and five restarts.

    An image that the model gets wrong to begin with stays as it is. For one that no attack breaks,
    the most damaging image found is returned, where the authors' code returns the image itself.
    FAB, which has no radius, counts where it ends within `epsilon`. In `rand`, each image is judged
    by 20 new looks at it, and is left alone only once the model is wrong in all of them.

    An outcome's iterations are those of the attack the image is of, and its zero gradients are
    APGD's. `run_named` tells the attacks. What few images are left of several batches are attacked
    together, so that `batches` yields several of them at a time.

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

    options: ClassVar[Mapping[str, Option]] = {
        "norm": NORM,
        "epsilon": POSITIVE,
        "version": _VERSION,
        "iterations": COUNT,
        "target_classes": COUNT,
        "queries": COUNT,
        "batches_at_once": COUNT,
        "batch_size": COUNT,
        "seed": SEED,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **CompiledAttack.defaults,
        "version": "standard",
        "iterations": 100,
        "target_classes": 9,
        "queries": 5000,
        "batches_at_once": 8,
    }

    version: str
    iterations: int
    target_classes: int
    queries: int
    batches_at_once: int

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Sets the options; each attack is made when it first has something to do."""
        super().__init__(estimator, **options)
        self._attacks: dict[str, CompiledAttack] = {}
        # A partial, because TensorFlow counts compilations by the code of a function.
        self._compiled_judge = tf.function(functools.partial(self._judge_batch), autograph=False)

    def set_params(self, **options: Any) -> None:
        """Sets options by name, all or none.

        Raises:
            SfmError: If an option is unknown, its value not allowed, or the model has too few
                classes for the version.
        """
        version, class_count = options.get("version"), self.estimator.nb_classes
        if _VERSION.is_valid(version) and class_count < _VERSIONS[version].class_count:
            raise SfmError(
                f"AutoAttack's version {version!r} needs at least {_VERSIONS[version].class_count} "
                f"classes for its DLR loss; found {class_count}. Attack the model with APGD on the "
                "cross-entropy and with Square instead."
            )
        super().set_params(**options)

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
            half of the looks; `CLEAN` or `STANDING` elsewhere.
        """
        outcomes, names = zip(*self._sweeps(images, labels, mask, positions), strict=True)
        return join_outcomes(outcomes), np.concatenate(names)

    def batches(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> Iterator[AttackOutcome]:
        """Yields outcomes as every attack does, of `batches_at_once` batches at a time."""
        for outcome, _ in self._sweeps(images, labels, mask, positions):
            yield outcome

    def _sweeps(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        mask: np.ndarray | None,
        positions: np.ndarray | None,
    ) -> Iterator[tuple[AttackOutcome, np.ndarray]]:
        images = check_images(images, self.estimator.input_shape)
        check_logits(self.estimator.predict(images[: self.batch_size]), self.estimator.nb_classes)
        labels = self._labels(images, labels)
        mask = check_mask(mask, images.shape)
        positions = np.arange(len(images)) if positions is None else np.asarray(positions)
        seeds = np.stack([np.full_like(positions, self.seed), positions], axis=1)
        size = self.batches_at_once * self.batch_size
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            batch = AttackBatch(images[rows], labels[rows], mask[rows], seeds[rows])
            worst = self._attack_batch(batch)
            self._check_outcome(batch.images, positions[rows], worst.outcome())
            yield worst.outcome(), np.where(worst.fooled >= 0.5, worst.names, STANDING)

    def _attack_batch(self, batch: AttackBatch) -> WorstImages:
        """Attacks images of any number; the batch is of arrays, as the attacks take them."""
        worst = begin_with(batch.images, self._judge(batch.images, batch.labels), CLEAN)
        parts = _VERSIONS[self.version].parts
        for name in parts:
            rows = np.flatnonzero(worst.fooled < 1.0)
            if len(rows) == 0:
                break
            attack, left = self._part(name), AttackBatch(*(array[rows] for array in batch))
            outcome = attack.run(left.images, left.labels, left.mask, left.seeds[:, 1])
            verdict = self._judge(outcome.images, left.labels)
            is_allowed = self._is_allowed(attack, left.images, outcome)
            keep_worse(worst, rows, outcome, verdict, is_allowed, name)
            if name == parts[0]:
                worst.zero_gradient[rows] = outcome.zero_gradient
        return worst

    def _part(self, name: str) -> CompiledAttack:
        attack, fixed = _PARTS[name]
        looks = {"gradient_samples": _VERSIONS[self.version].looks}
        values = {option: getattr(self, option) for option in self.options} | looks
        shared = {option: value for option, value in values.items() if option in attack.options}
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

    def _judge(self, images: np.ndarray, labels: np.ndarray) -> Verdict:
        size = bucket_size(len(images), self.batch_size)
        verdicts = []
        for start in range(0, len(images), size):
            rows = fill_up(np.arange(start, min(start + size, len(images))), size)
            looks = _VERSIONS[self.version].looks
            tensors = self._compiled_judge(
                tf.constant(images[rows]), tf.constant(labels[rows]), looks
            )
            verdicts.append([tensor.numpy()[: len(images) - start] for tensor in tensors])
        return Verdict(*map(np.concatenate, zip(*verdicts, strict=True)))

    def _judge_batch(self, images: tf.Tensor, labels: tf.Tensor, looks: int) -> tuple:
        logits = self._logits(tf.repeat(images, looks, axis=0))
        labels = tf.repeat(labels, looks)
        damage = evaluate(-margin(logits, labels), logits, labels, targeted=False, looks=looks)
        losses = tf.reshape(stable_cross_entropy(logits, labels), (-1, looks))
        return damage.fooled, damage.objective, tf.reduce_mean(losses, axis=1)
