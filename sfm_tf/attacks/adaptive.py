"""Attacks that know the parts of the defence and aim at each of them."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import NOT_NEGATIVE, AttackBatch, Scores, one_of, score, usable_gradient
from sfm_tf.attacks.pgd import GradientAttack
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel


class Objective(NamedTuple):
    """What an adaptive attack maximises, and through which parts of the model.

    Attributes:
        adds_loss: Whether the cross-entropy of the whole model is part of it.
        adds_mask_distance: Whether the mask's distance from the clean image's is part of it.
        freezes_mask: Whether the mask counts as a constant when the gradient is taken.
    """

    adds_loss: bool = True
    adds_mask_distance: bool = False
    freezes_mask: bool = False


OBJECTIVES: Mapping[str, Objective] = {
    "mask_aware": Objective(adds_mask_distance=True),
    "mask_stage": Objective(adds_loss=False, adds_mask_distance=True),
    "frozen_mask": Objective(freezes_mask=True),
}
"""The objectives by the name of the attack's option."""


class MaskDistance(NamedTuple):
    """What the mask's distance from that of the clean image needs.

    Attributes:
        clean_masks: Float32 `(batch, height, width, 1)`: G of the clean images.
        weight: Float32 scalar: weight of the distance.
    """

    clean_masks: tf.Tensor
    weight: tf.Tensor


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class AdaptiveGradientDescent(GradientAttack):
    """Projected gradient descent on a `DefendedModel` F(T(G(x) * x)) that aims at its parts.

    An evaluation of a defence has to try what only its design suggests (Tramer et al. 2020, "On
    adaptive attacks to adversarial example defenses"). By the option `objective` it maximises

    - `mask_aware`: the loss of the whole model + mask_weight * d, with d the mean squared
      difference between the masks of the attacked and of the clean image, so as to drive the mask
      away from what the defence chose;
    - `mask_stage`: d alone: the masker is attacked in the hope that the classifier then fails. The
      plain difference is taken, not the classifier's cosine distance of Eq. 4, so that the gradient
      runs through no part but the masker. It is zero at the clean image: start at random;
    - `frozen_mask`: the loss, with the mask a constant, at its value of the iterate: what a mask
      whose own gradient vanishes or misleads hides of the classifier.

    No objective changes a value of the forward pass. Whatever is maximised, `keep_best` and
    `stop_when_fooled` go by what the whole model does with an iterate: whether it is fooled, then
    the loss.

    Args:
        estimator: TensorFlow classifier of ART around a `DefendedModel` with a masker, without
            preprocessors of its own.
        objective: A key of `OBJECTIVES`.
        mask_weight: Weight of d, which is in [0, 1], beside the loss; for `mask_aware` only. Well
            above 0.1, d outweighs the small gradient of confident predictions.
        **options: Those of `GradientAttack`; by default with a random start, `keep_best`
            and the stable cross-entropy.

    Raises:
        SfmError: If the classifier is not such a model, or an option is not allowed.
    """

    objective: str
    mask_weight: float = 0.03
    random_start: bool = True
    keep_best: bool = True
    loss: str = "stable_cross_entropy"

    graph_options: ClassVar[tuple[str, ...]] = (*GradientAttack.graph_options, "objective")

    def __post_init__(self, estimator: TensorFlowV2Classifier) -> None:
        """Checks that the classifier is a defended model."""
        super().__post_init__(estimator)
        self._model = _defended_model(estimator)

    def _check_params(self) -> None:
        super()._check_params()
        self._check(one_of(OBJECTIVES), "objective")
        self._check(NOT_NEGATIVE, "mask_weight")

    def _initial_memory(self, images: tf.Tensor) -> MaskDistance:
        clean_masks = tf.cast(self._model.mask(images), tf.float32)
        return MaskDistance(clean_masks, tf.constant(self.mask_weight, tf.float32))

    def _scores_and_gradient(
        self, images: tf.Tensor, uniforms: tf.Tensor, batch: AttackBatch, memory: MaskDistance
    ) -> tuple[Scores, tf.Tensor]:
        del uniforms
        objective, samples = OBJECTIVES[self.objective], self.gradient_samples
        model = self._model
        labels = self._samples(batch.labels)
        with tf.GradientTape() as tape:
            tape.watch(images)
            views = self._samples(images)
            masks = model.mask(views)
            seen = tf.stop_gradient(masks) if objective.freezes_mask else masks
            logits = tf.cast(_with_masks(model, seen)(views), tf.float32)
            losses = self._losses(logits, labels)
            scores = score(losses, logits, labels, self.targeted, samples)
            maximised = scores.objective if objective.adds_loss else 0.0
            if objective.adds_mask_distance:
                maximised += memory.weight * _mask_distances(masks, memory.clean_masks, samples)
        return scores, usable_gradient(tape.gradient(maximised, images), batch.mask)


def _defended_model(estimator: TensorFlowV2Classifier) -> DefendedModel:
    model = estimator.model
    if not isinstance(model, DefendedModel) or model.masker is None:
        found = type(model).__name__
        found += " without one" if isinstance(model, DefendedModel) else ""
        raise SfmError(
            f"An adaptive attack needs a DefendedModel with a masker; found a {found}. "
            "Use pgd instead."
        )
    if estimator.preprocessing_operations:
        raise SfmError(
            "An adaptive attack needs all pre-processing inside the DefendedModel; found "
            "preprocessors of the classifier."
        )
    return model


def _with_masks(model: DefendedModel, masks: tf.Tensor) -> DefendedModel:
    """Returns the model for the images that have these masks."""

    def masker(images: tf.Tensor, training: bool) -> tf.Tensor:
        del images, training
        return masks

    return DefendedModel(model.classifier, masker, model.preprocessor)


def _mask_distances(masks: tf.Tensor, clean_masks: tf.Tensor, samples: int) -> tf.Tensor:
    """Returns per image the mean squared difference over its samples, which lie side by side."""
    difference = tf.cast(masks, tf.float32) - tf.repeat(clean_masks, samples, axis=0)
    rows = tf.reshape(difference**2, (tf.shape(clean_masks)[0], -1))
    return tf.reduce_mean(rows, axis=1)
