"""What the detector of feature squeezing makes of the images of an evaluation, as a file."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.attacks.catalogue import ATTACK_KINDS, NORMS
from sfm_tf.attacks.squeezing_aware import SqueezingAwareGradientDescent
from sfm_tf.choices import PIXEL_LEVELS
from sfm_tf.config import EvaluationConfig
from sfm_tf.defences.feature_squeezing import squeezing_scorer, threshold_at
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.attack_execution import Progress
from sfm_tf.evaluation.detection import AttackedScores, detection_summary
from sfm_tf.evaluation.results import OWN_MODEL, UNDEFENDED
from sfm_tf.evaluation.samples import Samples
from sfm_tf.evaluation.scoring import ScoredModel, score_clean
from sfm_tf.evaluation.stored_evaluation import exact_float32
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor, split_chain

DETECTION_FILE = "detection.json"

AWARE_ATTACK = "squeezing_aware"
"""Name of the attack that knows the detector, in the file's entries."""


@dataclasses.dataclass(frozen=True)
class Detector:
    """The detector in front of a bare classifier.

    Attributes:
        squeezers: A chain, of which each operation is a squeezer.
        validation_images: Clean images that the threshold is chosen on, float32 in [0, 1].
    """

    squeezers: str
    validation_images: np.ndarray


def guarded_model(models: Mapping[str, DefendedModel]) -> str | None:
    """Returns the name of the bare classifier that a detector can guard; None without one."""
    return next((name for name in (UNDEFENDED, OWN_MODEL) if name in models), None)


def write_detection(
    detector: Detector,
    models: Mapping[str, DefendedModel],
    samples: Samples,
    config: EvaluationConfig,
    seed: int,
    store: AdversarialStore,
    folder: pathlib.Path,
    progress: Progress,
) -> dict[str, Any]:
    """Scores clean and adversarial images of the bare classifier, and writes the summary.

    The adversarial images are those that an evaluation stored for the bare classifier, each set
    once, and those of an attacker who knows the detector and its threshold, at the largest radius.

    Args:
        detector: Its squeezers and what its threshold is chosen on.
        models: The models of the evaluation, the bare classifier among them.
        samples: The evaluated images.
        config: Settings of the evaluation.
        seed: Seed of the attack.
        store: Where the evaluation linked its adversarial images, with their index.
        folder: Existing folder to write `DETECTION_FILE` into.
        progress: Told of each step.

    Returns:
        What `detection.detection_summary` returned.

    Raises:
        SfmError: If there is no bare classifier, or a stored set is damaged.
    """
    name = guarded_model(models)
    if name is None:
        raise SfmError("A detector guards the bare classifier; add undefended to --defences.")
    with exact_float32():
        summary = _summarise(detector, name, models[name], samples, config, seed, store, progress)
    write_json(folder / DETECTION_FILE, summary)
    progress("detector", len(samples), len(samples))
    return summary


def _summarise(
    detector: Detector,
    name: str,
    model: DefendedModel,
    samples: Samples,
    config: EvaluationConfig,
    seed: int,
    store: AdversarialStore,
    progress: Progress,
) -> dict[str, Any]:
    scored = score_clean(model, samples, config.attack_batch_size)
    squeezers = [parse_preprocessor(spec) for spec in split_chain(detector.squeezers)]
    score = squeezing_scorer(scored.classifier, squeezers, config.attack_batch_size)
    progress("detector", 0, len(samples))
    validation_scores = score(detector.validation_images)
    threshold = threshold_at(validation_scores)
    images = {
        **_stored_images(name, samples, config, store),
        ("adaptive", AWARE_ATTACK, max(config.epsilons)): _aware_images(
            detector, scored, samples, config, seed, threshold
        ),
    }
    attacks = [
        AttackedScores(*key, score(attacked), *_correctness(scored, samples, attacked))
        for key, attacked in images.items()
    ]
    return detection_summary(validation_scores, score(samples.images), attacks)


def _stored_images(
    name: str, samples: Samples, config: EvaluationConfig, store: AdversarialStore
) -> dict[tuple[str, str, float | None], np.ndarray]:
    """Returns the images of each set of the bare classifier by threat model, attack and radius."""
    found, seen = {}, set()
    for entry in store.read_index():
        if entry.defence != name or entry.name in seen:
            continue
        seen.add(entry.name)
        is_slow = ATTACK_KINDS[entry.attack].is_slow
        attacked = samples.first(config.decision_examples) if is_slow else samples
        found[entry.threat_model, entry.attack, entry.epsilon] = _read(entry.name, attacked, store)
    return found


def _read(set_name: str, samples: Samples, store: AdversarialStore) -> np.ndarray:
    outcome = store.read(set_name, samples.images.shape)
    if outcome is None:
        raise SfmError(f"{store.path(set_name)} is gone; run the evaluation with --force.")
    return outcome.images


def _aware_images(
    detector: Detector,
    scored: ScoredModel,
    samples: Samples,
    config: EvaluationConfig,
    seed: int,
    threshold: float,
) -> np.ndarray:
    epsilon = max(config.epsilons)
    attack = SqueezingAwareGradientDescent(
        scored.classifier,
        norm=NORMS[config.norm],
        epsilon=epsilon / PIXEL_LEVELS,
        step_size=max(config.step_size, epsilon / config.iterations) / PIXEL_LEVELS,
        iterations=config.iterations,
        batch_size=config.attack_batch_size,
        seed=seed,
        threshold=threshold,
        squeezers=split_chain(detector.squeezers),
    )
    return attack.run(samples.images, samples.labels).images


def _correctness(
    scored: ScoredModel, samples: Samples, attacked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether the classifier is right on the attacked images, and on the clean ones."""
    labels = samples.labels[: len(attacked)]
    clean = np.argmax(scored.clean_logits[: len(attacked)], axis=1)
    return scored.predictions(attacked) == labels, clean == labels
