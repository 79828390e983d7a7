"""The images that a report shows, from the trained models and the stored attacks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from sfm_tf.attacks.catalogue import ATTACK_KINDS
from sfm_tf.config import EvaluationConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore, StoredSet
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.report.report_inputs import FailureGallery, Gallery, Perturbation

_BATCH = 64


def defence_images(defended: DefendedModel, images: np.ndarray) -> Gallery:
    """Returns images with what the defence makes of them.

    Args:
        defended: The defence.
        images: Float32 in [0, 1], shape `(count, height, width, channels)`.
    """
    tensor = tf.constant(images)
    return Gallery(
        images=images,
        masks=defended.mask(tensor).numpy(),
        masked=defended.masked(tensor).numpy(),
        defended=defended.defended(tensor).numpy(),
    )


def masks_of(defended: DefendedModel, images: np.ndarray) -> np.ndarray:
    """Returns the masks of images, computed in batches.

    Args:
        defended: The defence.
        images: Float32 in [0, 1], shape `(count, height, width, channels)`.

    Returns:
        Float32 in [0, 1], shape `(count, height, width, 1)`.
    """
    starts = range(0, len(images), _BATCH)
    masks = [defended.mask(tf.constant(images[start : start + _BATCH])) for start in starts]
    return np.concatenate([mask.numpy() for mask in masks])


def perturbations(
    store: AdversarialStore,
    subject: str,
    settings: EvaluationConfig,
    images: np.ndarray,
    count: int,
) -> Iterator[Perturbation]:
    """Yields, for each threat model, images under the last attack at the largest radius.

    Args:
        store: The adversarial images of the evaluation.
        subject: The defence that the evaluation is about.
        settings: What the evaluation ran with.
        images: All images it ran on, shape `(examples, height, width, channels)`.
        count: Most images of each.

    Raises:
        SfmError: If stored images are gone or damaged.
    """
    epsilon = max(settings.epsilons)
    last = {
        entry.threat_model: entry
        for entry in store.read_index()
        if (entry.defence, entry.epsilon) == (subject, epsilon)
    }
    for entry in last.values():
        yield _perturbation(store, entry, epsilon, images, count, settings)


def strongest_knowledge(
    store: AdversarialStore,
    subject: str,
    settings: EvaluationConfig,
    images: np.ndarray,
    count: int,
) -> Perturbation | None:
    """Returns images under the attacker who knows most, at the smallest radius.

    Args:
        store: The adversarial images of the evaluation.
        subject: The defence that the evaluation is about.
        settings: What the evaluation ran with.
        images: All images it ran on, shape `(examples, height, width, channels)`.
        count: Most images returned.

    Returns:
        Those of PGD, or else of the last attack, in the white box or else in the gray box; None
        where neither was run.

    Raises:
        SfmError: If stored images are gone or damaged.
    """
    epsilon = min(settings.epsilons)
    usable = [
        entry
        for entry in store.read_index()
        if (entry.defence, entry.epsilon) == (subject, epsilon)
        and entry.threat_model in ("white_box", "gray_box")
    ]
    if not usable:
        return None
    chosen = max(usable, key=lambda e: (e.threat_model == "white_box", e.attack == "pgd"))
    return _perturbation(store, chosen, epsilon, images, count, settings)


def failure_images(
    store: AdversarialStore,
    subject: str,
    settings: EvaluationConfig,
    images: np.ndarray,
    failures: Sequence[Mapping[str, Any]],
) -> FailureGallery:
    """Returns the worst failures with their images.

    Args:
        store: The adversarial images of the evaluation.
        subject: The defence that the evaluation is about.
        settings: What the evaluation ran with.
        images: All images it ran on, shape `(examples, height, width, channels)`.
        failures: What `sfm_tf.report.worst_failures.find_failures` returned.

    Raises:
        SfmError: If stored images are gone or damaged.
    """
    index = {
        (entry.threat_model, entry.attack, entry.epsilon): entry
        for entry in store.read_index()
        if entry.defence == subject
    }
    # An attack that finds its own radius is stored once, under none.
    entries = [
        index.get((*key, failure["epsilon"])) or index[(*key, None)]
        for failure in failures
        for key in [(failure["threat_model"], failure["attack"])]
    ]
    outcomes = {
        entry.name: _read(store, entry, images, settings)
        for entry in {entry.name: entry for entry in entries}.values()
    }
    places = [failure["image_index"] for failure in failures]
    adversarial = [
        outcomes[entry.name][place] for entry, place in zip(entries, places, strict=True)
    ]
    clean = images[np.array(places, int)]
    return FailureGallery(failures, clean, np.reshape(adversarial, clean.shape).astype(np.float32))


def _perturbation(
    store: AdversarialStore,
    entry: StoredSet,
    epsilon: float,
    images: np.ndarray,
    count: int,
    settings: EvaluationConfig,
) -> Perturbation:
    adversarial = _read(store, entry, images, settings)[:count]
    shown = images[: len(adversarial)]
    return Perturbation(entry.threat_model, entry.attack, epsilon, shown, adversarial)


def _read(
    store: AdversarialStore, entry: StoredSet, images: np.ndarray, settings: EvaluationConfig
) -> np.ndarray:
    # A slow attack was given the first few images only.
    slow = ATTACK_KINDS[entry.attack].is_slow
    count = min(settings.decision_examples, len(images)) if slow else len(images)
    outcome = store.read(entry.name, (count, *images.shape[1:]))
    if outcome is None:
        raise SfmError(f"{store.path(entry.name)} is gone; run the evaluation with --force.")
    return outcome.images
