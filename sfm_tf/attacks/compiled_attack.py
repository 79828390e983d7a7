"""What all attacks of this library share: options, input checks, batches and their validation."""

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from art.attacks.attack import EvasionAttack
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.art_classifier import CLIP_VALUES, classifier_logits
from sfm_tf.attacks.attack_inputs import check_images, check_labels, check_logits, check_mask
from sfm_tf.attacks.attack_options import COUNT, FLAG, NORM, POSITIVE, SEED, Option, check_options
from sfm_tf.attacks.buckets import bucket_size, fill_up
from sfm_tf.attacks.keyword_options import complete, constructor_signature
from sfm_tf.attacks.lanes import attack_in_lanes
from sfm_tf.attacks.validity import faults
from sfm_tf.errors import SfmError

NOT_FOUND = -1
"""In place of a number of iterations: the attack found no adversarial image."""


@dataclasses.dataclass(frozen=True)
class AttackOutcome:
    """Adversarial images and how the attack went, per image.

    Attributes:
        images: Float32 in [0, 1], shape `(batch, height, width, channels)`.
        loss: Float32 cross-entropy at those images on the attacked model, shape `(batch,)`.
        iterations: Int32 steps taken to reach those images, shape `(batch,)`; `NOT_FOUND` where a
            minimum-norm attack found none and returns the image unchanged.
        zero_gradient: Whether the first gradient had no non-zero entry, shape `(batch,)`. In
            float32 that of the cross-entropy is exactly zero at a confident prediction, which
            stalls the attack without making the model robust.
    """

    images: np.ndarray
    loss: np.ndarray
    iterations: np.ndarray
    zero_gradient: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Whether there is an image to score, which only minimum-norm attacks may deny."""
        return self.iterations != NOT_FOUND

    @property
    def zero_gradient_share(self) -> float:
        """Share of the images whose first gradient was zero, in [0, 1]."""
        return float(np.mean(self.zero_gradient))


def join_outcomes(outcomes: Sequence[AttackOutcome]) -> AttackOutcome:
    """Returns the outcomes of consecutive images as one."""
    names = [field.name for field in dataclasses.fields(AttackOutcome)]
    parts = {name: [getattr(outcome, name) for outcome in outcomes] for name in names}
    return AttackOutcome(**{name: np.concatenate(arrays) for name, arrays in parts.items()})


class AttackBatch(NamedTuple):
    """Tensors of one batch, all of the same first dimension.

    Attributes:
        images: Float32 in [0, 1], `(batch, height, width, channels)`.
        labels: Int64 `(batch,)`: to get away from, or to get to in a targeted attack.
        mask: Float32 of the images' shape; zero where a pixel must not change.
        seeds: Int32 `(batch, 2)`: the attack's seed and the image's position.
    """

    images: tf.Tensor
    labels: tf.Tensor
    mask: tf.Tensor
    seeds: tf.Tensor


class BatchOutcome(NamedTuple):
    """Tensors of one batch with the meaning of `AttackOutcome`'s fields."""

    images: tf.Tensor
    loss: tf.Tensor
    iterations: tf.Tensor
    zero_gradient: tf.Tensor


class CompiledAttack(EvasionAttack):
    """An ART attack that sees batches of one fixed size, so that it compiles once.

    A subclass declares its `options`, in `defaults` the values of those that may be left out, and
    implements `_attack_batch`. An attack for the smallest perturbation has an infinite `epsilon`,
    which is then no option of it.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        **options: A value for each of `options` that has no default.

    Raises:
        SfmError: If the classifier or an option is not fit for the attack, or one is missing.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "norm": NORM,
        "epsilon": POSITIVE,
        "targeted": FLAG,
        "batch_size": COUNT,
        "seed": SEED,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "norm": math.inf,
        "targeted": False,
        "batch_size": 128,
        "seed": 0,
    }
    attack_params: ClassVar[list[str]] = list(options)
    _estimator_requirements = (TensorFlowV2Classifier,)
    _lanes: ClassVar[int] = 2

    norm: float | str
    epsilon: float
    batch_size: int
    seed: int
    _returns_logits = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Declares the options to ART and as the signature of the class."""
        super().__init_subclass__(**arguments)
        cls.attack_params = list(cls.options)
        cls.__signature__ = constructor_signature(cls.options, cls.defaults)

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Checks the classifier and sets the options."""
        super().__init__(estimator=estimator)
        if not estimator.all_framework_preprocessing:
            raise SfmError(
                "The classifier has a preprocessor that is not TensorFlow's; expected subclasses "
                "of PreprocessorTensorFlowV2 only."
            )
        if estimator.clip_values is None or not np.array_equal(estimator.clip_values, CLIP_VALUES):
            raise SfmError(f"clip_values {estimator.clip_values}; expected {CLIP_VALUES}.")
        self.set_params(**complete(type(self).__name__, self.options, self.defaults, options))

    def set_params(self, **options: Any) -> None:
        """Sets options by name, all or none; nothing is compiled anew for another number.

        Raises:
            SfmError: If an option is unknown or its value not allowed.
        """
        check_options(type(self).__name__, dict(self.options), options)
        for name, value in options.items():
            setattr(self, name, value)

    def generate(
        self, x: np.ndarray, y: np.ndarray | None = None, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the adversarial images alone; see `run`."""
        return self.run(x, y, mask).images

    def run(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> AttackOutcome:
        """Attacks every image and checks the result; see `batches`."""
        return join_outcomes(list(self.batches(images, labels, mask, positions)))

    def batches(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> Iterator[AttackOutcome]:
        """Attacks batch after batch, checks each result and yields it.

        Args:
            images: Numbers in [0, 1], shape `(batch, height, width, channels)`.
            labels: Class indices `(batch,)` or one-hot rows; None for the model's predictions,
                which a targeted attack does not allow.
            mask: Numbers that broadcast to the images' shape; zero where a pixel must not change.
            positions: Integers `(batch,)` that, with the attack's seed, seed each image; by default
                0, 1, 2 and so on. Part of a data set is attacked as in the whole one if its images
                come with their positions there.

        Yields:
            The adversarial images of the next `batch_size` images with their diagnostics.

        Raises:
            SfmError: If an argument is not as described or the model does not return logits.
            RuntimeError: If the attack broke its own limits, which is a defect.
        """
        images = check_images(images, self.estimator.input_shape)
        if not self._returns_logits:
            logits = self.estimator.predict(images[: self.batch_size])
            check_logits(logits, self.estimator.nb_classes)
            # Once: a look at a batch is a good part of an attack of one step.
            self._returns_logits = True
        labels = self._labels(images, labels)
        mask = check_mask(mask, images.shape)
        positions = np.arange(len(images)) if positions is None else np.asarray(positions)
        size = bucket_size(len(images), self.batch_size)
        for start in range(0, len(images), size):
            # The last batch is filled up with its last image: another shape would compile anew.
            rows = fill_up(np.arange(start, min(start + size, len(images))), size)
            seeds = np.stack([np.full_like(rows, self.seed), positions[rows]], axis=1)
            batch = AttackBatch(images[rows], labels[rows], mask[rows], seeds.astype(np.int32))
            tensors = attack_in_lanes(self._attack_batch, batch, self._lanes)
            count = len(images) - start
            outcome = AttackOutcome(*(tensor.numpy()[:count] for tensor in tensors))
            self._check_outcome(
                images[start : start + size], positions[start : start + size], outcome
            )
            yield outcome

    @abc.abstractmethod
    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        """Attacks one batch."""

    def _logits(self, images: tf.Tensor) -> tf.Tensor:
        return classifier_logits(self.estimator, images)

    def _labels(self, images: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        if labels is not None:
            return check_labels(labels, len(images), self.estimator.nb_classes)
        if self.targeted:
            raise SfmError("A targeted attack needs labels; expected the classes to reach.")
        starts = range(0, len(images), self.batch_size)
        chunks = [images[start : start + self.batch_size] for start in starts]
        return np.concatenate([np.argmax(self.estimator.predict(c), axis=1) for c in chunks])

    def _check_outcome(
        self, images: np.ndarray, positions: np.ndarray, outcome: AttackOutcome
    ) -> None:
        broken = ~np.isfinite(outcome.loss)
        if broken.any():
            raise SfmError(
                f"The model's loss is NaN or infinite for {broken.sum()} of {len(images)} attacked "
                f"images, first image {positions[np.argmax(broken)]}; expected finite logits."
            )
        found = faults(images, outcome.images, self.epsilon, float(self.norm))
        if found:
            raise RuntimeError(f"{self!r} made invalid images: {'; '.join(found)}.")
