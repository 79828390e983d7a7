"""A search that only sees which class is predicted: HopSkipJump."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from art.attacks.evasion import HopSkipJump as ArtHopSkipJump
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator

from sfm_tf.attacks.attack import (
    COUNT,
    NOT_FOUND,
    AttackBatch,
    BatchOutcome,
    CompiledAttack,
)
from sfm_tf.models.art_classifier import CLIP_VALUES, BatchedTensorFlowClassifier
from sfm_tf.models.logit_losses import stable_cross_entropy

# No search of ART's fails this often in a row, unless it has come to a halt: a bisection takes at
# most 30 queries, and after 30 halvings a step is smaller than float32 can add to a pixel.
_MOST_FAILURES = 100


class _StalledError(Exception):
    """The search is at an image that is not adversarial, and would never leave it."""


class _Decisions(ClassifierMixin, BaseEstimator):
    """A model as this attacker sees it: the class of any variant of one image, and no more.

    It remembers the closest adversarial variant. Only those asked for one at a time count: the
    last bits of logits, which decide at the boundary, can depend on the size of the batch.
    """

    def __init__(
        self,
        classifier: BatchedTensorFlowClassifier,
        image: np.ndarray,
        label: int,
        can_change: np.ndarray,
        norm: float,
    ) -> None:
        super().__init__(model=classifier.model, clip_values=CLIP_VALUES)
        self.nb_classes = classifier.nb_classes
        self.image, self.can_change = image, can_change
        self.closest, self.distance = image, math.inf
        self.queries, self.queries_before_closest = 0, NOT_FOUND
        self._classifier, self._label, self._norm = classifier, label, norm
        self._failures = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.image.shape

    def predict(self, x: np.ndarray, **options: Any) -> np.ndarray:
        """Returns one-hot rows: the class of each image, its fixed pixels put back."""
        del options
        images = np.where(self.can_change, x, self.image).astype(np.float32)
        classes = self._classifier.predict(images, batch_size=len(images)).argmax(axis=1)
        # ART can ask for NaN, of which argmax would say class 0.
        finite = np.isfinite(images).all(axis=(1, 2, 3))
        classes = np.where(finite, classes, self._label)
        if len(images) == 1:
            self._note(images[0], classes[0] != self._label)
        self.queries += len(images)
        return np.eye(self.nb_classes, dtype=np.float32)[classes]

    def fit(self, x: np.ndarray, y: np.ndarray, **options: Any) -> None:
        raise NotImplementedError("An attacker cannot train the model.")

    def _note(self, image: np.ndarray, is_adversarial: bool) -> None:
        self._failures = 0 if is_adversarial else self._failures + 1
        distance = np.linalg.norm((image - self.image).ravel().astype(np.float64), self._norm)
        if is_adversarial and distance < self.distance:
            self.closest, self.distance = image, distance
            self.queries_before_closest = self.queries
        if self.distance < math.inf and self._failures > _MOST_FAILURES:
            self._failures = 0
            raise _StalledError


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class HopSkipJump(CompiledAttack):
    """Walks along the boundary of the label's region to its closest point: HopSkipJump.

    Chen, Jordan and Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", 2020,
    Algorithm 2, as ART implements it. It searches for the smallest perturbation and sees only the
    predicted classes, so it succeeds where gradients or logits are hidden. With the default options
    it takes about 25,000 queries for each image, one image after another: use few images.

    ART's search runs with these differences:

    - An image is adversarial if the model does not give it the label. ART compares with the
      prediction for the clean image. So an image that the model gets wrong without an attack comes
      back unchanged, after 0 iterations; for all others both are the same.
    - The first adversarial image is drawn here, from up to `init_size` uniformly random images,
      because ART draws it from a generator that cannot be seeded.
    - ART's other draws come from NumPy's global generator. It is seeded for each image, by the seed
      and the image's position, and restored afterwards: no image depends on its batch.
    - The result is the closest adversarial image that was queried by itself. ART returns its last
      one, which has just stepped away from the boundary.
    - If rounding leaves ART on the wrong side of the boundary, it halves a step without end. Here
      the next iteration starts, from the closest image.

    If no adversarial image was found, the image comes back unchanged with `NOT_FOUND` iterations.
    Otherwise `iterations` counts the queries before the one that found the image.

    Args:
        estimator: This library's TensorFlow classifier, which returns logits.
        norm: Order of the norm to be small: `math.inf`, "inf" or 2.
        iterations: Steps along the boundary.
        max_evaluations: Most images that one estimate of the boundary's normal asks about.
        initial_evaluations: How many the first estimate asks about; iteration k, that times the
            square root of k.
        init_size: Most random images that are tried as the first adversarial one.
        batch_size: Images between two reports of progress.
        seed: Seed of all draws.
    """

    norm: float | str = 2
    epsilon: ClassVar[float] = math.inf
    targeted: ClassVar[bool] = False
    iterations: int = 50
    max_evaluations: int = 10_000
    initial_evaluations: int = 100
    init_size: int = 100
    batch_size: int = 1

    _estimator_requirements = (BatchedTensorFlowClassifier,)
    # ART draws from NumPy's global generator, which threads would share.
    _parallel_parts: ClassVar[int] = 1

    def _check_params(self) -> None:
        super()._check_params()
        self._check(COUNT, "iterations", "max_evaluations", "initial_evaluations", "init_size")

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        rows = list(zip(*(tensor.numpy() for tensor in batch), strict=True))
        found: list[tuple[np.ndarray, int]] = []
        for index, row in enumerate(rows):
            # The last image is repeated to fill up the batch.
            is_repeated = index > 0 and all(map(np.array_equal, row, rows[index - 1]))
            found.append(found[-1] if is_repeated else self._attack_image(*row))
        images, iterations = map(np.stack, zip(*found, strict=True))
        logits = self.estimator.predict(images)
        # Rounding can take back what only just fooled the model.
        is_lost = (logits.argmax(axis=1) == batch.labels.numpy()) & (iterations != NOT_FOUND)
        images = np.where(is_lost[:, None, None, None], batch.images.numpy(), images)
        logits = self.estimator.predict(images) if is_lost.any() else logits
        return BatchOutcome(
            tf.constant(images),
            stable_cross_entropy(tf.constant(logits), batch.labels),
            tf.constant(np.where(is_lost, NOT_FOUND, iterations), tf.int32),
            tf.zeros_like(batch.labels, tf.bool),
        )

    def _attack_image(
        self, image: np.ndarray, label: int, mask: np.ndarray, seeds: np.ndarray
    ) -> tuple[np.ndarray, int]:
        """Returns the closest adversarial image and how many queries came before it."""
        decisions = _Decisions(self.estimator, image, label, mask != 0.0, float(self.norm))
        decisions.predict(image[None])
        random = np.random.default_rng(seeds)
        for _ in range(self.init_size):
            if decisions.distance < math.inf:
                break
            decisions.predict(random.uniform(size=(1, *image.shape)))
        if 0.0 < decisions.distance < math.inf:
            with _seeded(seeds):
                self._approach(decisions)
        return decisions.closest, decisions.queries_before_closest

    def _approach(self, decisions: _Decisions) -> None:
        iterations = int(self.iterations)
        attack = ArtHopSkipJump(
            decisions,
            norm=self.norm,
            max_iter=iterations,
            max_eval=int(self.max_evaluations),
            init_eval=int(min(self.initial_evaluations, self.max_evaluations)),
            verbose=False,
        )
        while attack.max_iter > 0:
            try:
                attack.generate(
                    decisions.image[None],
                    x_adv_init=decisions.closest[None].copy(),
                    mask=decisions.can_change[None],
                    resume=True,
                )
            except _StalledError:
                attack.set_params(curr_iter=attack.curr_iter + 1)
                attack.set_params(max_iter=iterations - attack.curr_iter)
            else:
                return


@contextlib.contextmanager
def _seeded(seeds: np.ndarray) -> Iterator[None]:
    """Seeds NumPy's global generator, and afterwards sets it back to where it was."""
    state = np.random.get_state()
    np.random.seed(seeds)
    try:
        yield
    finally:
        np.random.set_state(state)
