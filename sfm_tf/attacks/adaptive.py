"""Attacks that know the parts of the defence and aim at each of them."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    NOT_NEGATIVE,
    AttackBatch,
    BatchOutcome,
    Evaluation,
    Option,
    evaluate,
    usable_gradient,
)
from sfm_tf.attacks.pgd import IteratedGradientAttack
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import SURROGATES


class Objective(NamedTuple):
    """What an adaptive attack climbs, and through which parts of the model.

    Attributes:
        climbs_loss: Whether the cross-entropy of the whole model is part of it.
        climbs_mask: Whether the mask's distance from the clean image's is part of it.
        holds_mask: Whether the mask counts as a constant when the gradient is taken.
        swaps_surrogate: Whether the pre-processing T has the gradient of its other surrogate.
    """

    climbs_loss: bool = True
    climbs_mask: bool = False
    holds_mask: bool = False
    swaps_surrogate: bool = False


OBJECTIVES: Mapping[str, Objective] = {
    "mask_aware": Objective(climbs_mask=True),
    "mask_stage": Objective(climbs_loss=False, climbs_mask=True),
    "frozen_mask": Objective(holds_mask=True),
    "other_surrogate": Objective(swaps_surrogate=True),
}
"""The objectives by the name of the attack's option."""

_OBJECTIVE = Option(
    lambda value: isinstance(value, str) and value in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}"
)


class _AimedMode(NamedTuple):
    """What the compiled loop is specialised for: that of every gradient attack, and the objective.

    Attributes:
        norm: As there.
        loss: As there.
        targeted: As there.
        keep_best: As there.
        stop_when_fooled: As there.
        gradient_samples: As there.
        objective: What to climb.
    """

    norm: float | str
    loss: str
    targeted: bool
    keep_best: bool
    stop_when_fooled: bool
    gradient_samples: int
    objective: Objective


class _AimedBatch(NamedTuple):
    """An `AttackBatch`, field by field, and per image what the mask's distance needs.

    Attributes:
        images: As there.
        labels: As there.
        mask: As there: the pixels that may change.
        seeds: As there.
        clean_masks: Float32 `(batch, height, width, 1)`: G of the clean images.
        mask_weights: Float32 `(batch,)`: weight of the distance from them.
    """

    images: tf.Tensor
    labels: tf.Tensor
    mask: tf.Tensor
    seeds: tf.Tensor
    clean_masks: tf.Tensor
    mask_weights: tf.Tensor


class AdaptiveGradientDescent(IteratedGradientAttack):
    """Projected gradient descent on a `DefendedModel` F(T(G(x) * x)) that aims at its parts.

    An evaluation of a defence has to try what only its design suggests (Tramer et al. 2020, "On
    adaptive attacks to adversarial example defenses"). By the option `objective` it climbs

    - `mask_aware`: the loss of the whole model + mask_weight * d, with d the mean squared
      difference between the masks of the attacked and of the clean image, so as to drive the mask
      away from what the defence chose;
    - `mask_stage`: d alone: the masker is attacked in the hope that the classifier then fails. The
      plain difference is taken, not the classifier's cosine distance of Eq. 4, so that the gradient
      runs through no part but the masker. It is zero at the clean image: start at random;
    - `frozen_mask`: the loss, with the mask a constant, at its value of the iterate: what a mask
      whose own gradient vanishes or misleads hides of the classifier;
    - `other_surrogate`: the loss, with T's gradient by the surrogate that the model does not use
      (BPDA). Without T the same as the white box.

    No objective changes a value of the forward pass. Whatever is climbed, `keep_best` and
    `stop_when_fooled` go by what the whole model does with an iterate: whether it is fooled, then
    the loss.

    Args:
        estimator: TensorFlow classifier of ART around a `DefendedModel` with a masker, without
            preprocessors of its own.
        objective: A key of `OBJECTIVES`.
        mask_weight: Weight of d, which is in [0, 1], beside the loss; for `mask_aware` only. Well
            above 0.1, d outweighs the small gradient of confident predictions.
        **options: Those of `IteratedGradientAttack`; by default with a random start, `keep_best`
            and the stable cross-entropy.

    Raises:
        SfmError: If the classifier is not such a model, or an option is not allowed.
    """

    options: ClassVar[Mapping[str, Option]] = {
        **IteratedGradientAttack.options,
        "objective": _OBJECTIVE,
        "mask_weight": NOT_NEGATIVE,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **IteratedGradientAttack.defaults,
        "random_start": True,
        "keep_best": True,
        "loss": "stable_cross_entropy",
        "mask_weight": 0.03,
    }

    objective: str
    mask_weight: float

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Checks the classifier and sets the options."""
        super().__init__(estimator, **options)
        self._model = _defended_model(estimator)

    def _mode(self) -> _AimedMode:
        return _AimedMode(*super()._mode(), OBJECTIVES[self.objective])

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        clean_masks = tf.cast(self._model.mask(batch.images), tf.float32)
        weights = tf.fill(tf.shape(batch.labels), tf.constant(self.mask_weight, tf.float32))
        return super()._attack_batch(_AimedBatch(*batch, clean_masks, weights))

    def _evaluate_with_gradient(
        self,
        images: tf.Tensor,
        view: Callable[[tf.Tensor], tf.Tensor],
        batch: _AimedBatch,
        mode: _AimedMode,
    ) -> tuple[Evaluation, tf.Tensor]:
        objective, looks = mode.objective, mode.gradient_samples
        model = _with_other_surrogate(self._model) if objective.swaps_surrogate else self._model
        labels = tf.repeat(batch.labels, looks)
        with tf.GradientTape() as tape:
            tape.watch(images)
            views = view(tf.repeat(images, looks, axis=0))
            masks = model.mask(views)
            seen = tf.stop_gradient(masks) if objective.holds_mask else masks
            logits = tf.cast(_with_masks(model, seen)(views), tf.float32)
            losses = self._losses(logits, labels)
            evaluation = evaluate(losses, logits, labels, mode.targeted, looks)
            climbed = evaluation.objective if objective.climbs_loss else 0.0
            if objective.climbs_mask:
                distances = _mask_distances(masks, batch.clean_masks, looks)
                climbed += batch.mask_weights * distances
        return evaluation, usable_gradient(tape.gradient(climbed, images), batch.mask)


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


def _with_other_surrogate(model: DefendedModel) -> DefendedModel:
    """Returns the model of the same values whose T has the gradient of the other surrogate."""
    (other,) = (name for name in SURROGATES if name != model.preprocessor.surrogate)
    return DefendedModel(model.classifier, model.masker, model.preprocessor.with_surrogate(other))


def _mask_distances(masks: tf.Tensor, clean_masks: tf.Tensor, looks: int) -> tf.Tensor:
    """Returns per image the mean squared difference over its looks, which lie side by side."""
    difference = tf.cast(masks, tf.float32) - tf.repeat(clean_masks, looks, axis=0)
    rows = tf.reshape(difference**2, (tf.shape(clean_masks)[0], -1))
    return tf.reduce_mean(rows, axis=1)
