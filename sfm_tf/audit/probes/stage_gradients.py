"""What is left of the loss's gradient at each stage of the model, from the logits to the image."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from sfm_tf.audit.probes.measurements import GradientHealth, LossGradient, StageGradient
from sfm_tf.evaluation.samples import Samples
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.logit_losses import LOSSES

STAGES = ("logits", "classifier_input", "masked_image", "mask", "image")
"""Where gradients are looked at, the loss's end first."""

PLAIN, STABLE = "cross_entropy", "stable_cross_entropy"


def gradient_health(model: DefendedModel, samples: Samples, batch_size: int) -> GradientHealth:
    """Returns how the gradients of the loss fare at the clean images, stage by stage.

    A zero or broken gradient stalls an attack without making the model robust (Carlini et al. 2019,
    "On evaluating adversarial robustness"; Pintor et al. 2022, "Indicators of attack failure"). The
    gradient at the masked image is what T's surrogate lets through.

    Args:
        model: What the attacker differentiates.
        samples: The images.
        batch_size: Images differentiated at a time.

    Returns:
        An entry for each of `STAGES`, and for the plain and the stable cross-entropy.
    """
    gradients = {
        loss: stage_gradients(model, samples, loss, batch_size) for loss in (PLAIN, STABLE)
    }
    return GradientHealth(
        stages=tuple(_health(name, gradients[STABLE][name]) for name in STAGES),
        losses={loss: _blindness(found, samples.labels) for loss, found in gradients.items()},
    )


def stage_gradients(
    model: DefendedModel, samples: Samples, loss: str, batch_size: int
) -> dict[str, np.ndarray | None]:
    """Returns the gradient of each image's loss with respect to each of `STAGES`.

    Args:
        model: What the attacker differentiates.
        samples: The images.
        loss: A key of `LOSSES`.
        batch_size: Images differentiated at a time.

    Returns:
        Float64 of shape `(count, values)`; None where the loss does not depend on the stage.
    """
    batches = [
        _batch_gradients(
            model, samples.images[first : first + batch_size], samples.labels[first:], loss
        )
        for first in range(0, len(samples), batch_size)
    ]
    return {
        name: None
        if batches[0][name] is None
        else np.concatenate([_rows(batch[name]) for batch in batches])
        for name in STAGES
    }


def _batch_gradients(
    model: DefendedModel, images: np.ndarray, labels: np.ndarray, loss: str
) -> Mapping[str, tf.Tensor | None]:
    with tf.GradientTape() as tape:
        stages = {"image": tf.constant(images)}
        tape.watch(stages["image"])
        # Watched, for without a masker it is a constant; and logits may be one.
        stages["mask"] = model.mask(stages["image"])
        tape.watch(stages["mask"])
        stages["masked_image"] = stages["mask"] * stages["image"]
        stages["classifier_input"] = model.preprocessor(stages["masked_image"])
        logits = model.classifier(stages["classifier_input"], training=False)
        stages["logits"] = tf.cast(logits, tf.float32)
        tape.watch(stages["logits"])
        losses = LOSSES[loss](stages["logits"], tf.constant(labels[: len(images)]))
        total = tf.reduce_sum(losses)
    return tape.gradient(total, stages)


def _rows(gradient: tf.Tensor) -> np.ndarray:
    # The squares of a small float32 would underflow.
    return gradient.numpy().astype(np.float64).reshape(len(gradient), -1)


def _health(stage: str, gradient: np.ndarray | None) -> StageGradient:
    if gradient is None:
        return StageGradient(
            stage=stage, connected=False, median_norm=0.0, zero_share=1.0, not_finite_share=0.0
        )
    is_finite = np.isfinite(gradient).all(axis=1)
    norms = np.linalg.norm(gradient[is_finite], axis=1)
    return StageGradient(
        stage=stage,
        median_norm=float(np.median(norms)) if len(norms) else 0.0,
        zero_share=float(np.mean(_is_zero(gradient))),
        not_finite_share=float(np.mean(~is_finite)),
    )


def _blindness(gradients: Mapping[str, np.ndarray | None], labels: np.ndarray) -> LossGradient:
    image, logits = gradients["image"], gradients["logits"]
    return LossGradient(
        zero_share=1.0 if image is None else float(np.mean(_is_zero(image))),
        label_blind_share=_blind_share(logits, labels),
    )


def logit_blindness(logits: np.ndarray, labels: np.ndarray, loss: str) -> float:
    """Returns the share of images whose label's logit has no gradient.

    An attack then raises other classes but no longer lowers the label's.

    Args:
        logits: Float32 of shape `(count, classes)`.
        labels: Int64 of shape `(count,)`.
        loss: A key of `LOSSES`.
    """
    tensor = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        total = tf.reduce_sum(LOSSES[loss](tensor, tf.constant(labels)))
    return _blind_share(tape.gradient(total, tensor).numpy(), labels)


def _blind_share(gradient: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(gradient[np.arange(len(labels)), labels] == 0.0))


def _is_zero(gradient: np.ndarray) -> np.ndarray:
    return (gradient == 0.0).all(axis=1)
