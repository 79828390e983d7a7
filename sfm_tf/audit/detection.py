"""How well a detector tells adversarial images from clean ones, by their scores."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn import metrics

from sfm_tf.defences.feature_squeezing import check_scores, squeezing_scorer, threshold_at
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.attack_building import build_attack, step_size_at
from sfm_tf.evaluation.attack_catalogue import AWARE_ATTACK
from sfm_tf.evaluation.job import Detector, EvaluationJob, guarded_model
from sfm_tf.evaluation.runner import ScoredModel, score_clean
from sfm_tf.evaluation.samples import Samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.significance import wilson_interval
from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.preprocessors.chain import parse_preprocessor, split_chain
from sfm_tf.settings import PIXEL_LEVELS

_CURVE_POINTS = 101
"""A false positive rate for each per cent: fine enough for print, and small in a file."""


@dataclasses.dataclass(frozen=True)
class AttackedScores:
    """What detector and classifier make of the images of one attack.

    Attributes:
        threat_model: What the attacker knew.
        attack: Name of the attack.
        epsilon: Radius in 1/255; None for an attack that finds its own.
        scores: The detector's scores, shape `(count,)`.
        correct: Whether the classifier is right on the adversarial image, bool `(count,)`.
        correct_when_clean: Whether it is right on the clean image, bool `(count,)`.
    """

    threat_model: str
    attack: str
    epsilon: float | None
    scores: np.ndarray
    correct: np.ndarray
    correct_when_clean: np.ndarray

    def __post_init__(self) -> None:
        """Raises `SfmError` if the arrays are not of the same images."""
        lengths = {name: len(getattr(self, name)) for name in ("correct", "correct_when_clean")}
        if set(lengths.values()) != {len(self.scores)}:
            found = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise SfmError(f"{len(self.scores)} scores of {self.attack} but {found}.")

    @property
    def successful_scores(self) -> np.ndarray:
        """Scores of the images that were right when clean and are wrong now."""
        return self.scores[self.correct_when_clean & ~self.correct]


def roc_curve(
    clean_scores: np.ndarray, adversarial_scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shares of both kinds of images that are flagged, at every threshold.

    Args:
        clean_scores: Scores of clean images, shape `(count,)`.
        adversarial_scores: Scores of adversarial ones, shape `(other_count,)`.

    Returns:
        False positive rates and true positive rates, float64 of one length, neither ever falling:
        from (0, 0) at the highest score of all down to (1, 1) below the lowest. Images that tie
        are flagged together.

    Raises:
        SfmError: If there are none of either, or a score is not finite.
    """
    scores = [check_scores(kind) for kind in (clean_scores, adversarial_scores)]
    is_adversarial = np.repeat([False, True], [len(kind) for kind in scores])
    false_positive_rates, true_positive_rates, _ = metrics.roc_curve(
        is_adversarial, np.concatenate(scores), drop_intermediate=False
    )
    return false_positive_rates, true_positive_rates


def detection_summary(
    validation_scores: np.ndarray,
    clean_scores: np.ndarray,
    attacks: Iterable[AttackedScores],
    false_positive_rate: float = 0.05,
) -> dict[str, Any]:
    """Returns how many clean and adversarial images a detector flags (Xu et al. 2018, section V).

    Args:
        validation_scores: Scores of clean images that the threshold is chosen on, and nothing
            else is measured on.
        clean_scores: Scores of the evaluated clean images, right or wrong.
        attacks: Scores of what attacks made of those images, or of the first of them.
        false_positive_rate: Share of the validation images that may be flagged.

    Returns:
        Values that JSON can hold: `false_positive_rate`, as given; `threshold`, above which scores
        are flagged; `validation` and `clean`, what it flags of either; and in `attacked`, an entry
        for each attack with `threat_model`, `attack`, `epsilon`, what is flagged of `all` its
        images and of the `successful` ones, which were right when clean and are wrong now, and
        `auc` and `curve` of these against the clean ones; both are None where none succeeded.
        What is flagged is `examples`, `flagged`, the share `rate` and its 95 % Wilson interval
        `rate_low`, `rate_high`, the last three None of no examples. A curve has, for
        `false_positive_rates` from 0 to 1, the highest `true_positive_rates` that a threshold
        attains without more false positives.

    Raises:
        SfmError: If a set of scores is empty or not finite, or the share outside its range.
    """
    threshold = threshold_at(validation_scores, false_positive_rate)
    clean_scores = check_scores(clean_scores)
    return {
        "false_positive_rate": float(false_positive_rate),
        "threshold": threshold,
        "validation": _flagged(validation_scores, threshold),
        "clean": _flagged(clean_scores, threshold),
        "attacked": [_attack_entry(attack, clean_scores, threshold) for attack in attacks],
    }


def _flagged(scores: np.ndarray, threshold: float) -> dict[str, Any]:
    count, flagged = len(scores), int(np.count_nonzero(np.asarray(scores) > threshold))
    low, high = wilson_interval(flagged, count) if count else (None, None)
    return {
        "examples": count,
        "flagged": flagged,
        "rate": flagged / count if count else None,
        "rate_low": low,
        "rate_high": high,
    }


def _attack_entry(
    attack: AttackedScores, clean_scores: np.ndarray, threshold: float
) -> dict[str, Any]:
    successful = attack.successful_scores
    rates = roc_curve(clean_scores, successful) if len(successful) else None
    return {
        "threat_model": attack.threat_model,
        "attack": attack.attack,
        "epsilon": attack.epsilon,
        "all": _flagged(check_scores(attack.scores), threshold),
        "successful": _flagged(successful, threshold),
        "auc": None if rates is None else float(metrics.auc(*rates)),
        "curve": None if rates is None else _thinned(*rates),
    }


def _thinned(
    false_positive_rates: np.ndarray, true_positive_rates: np.ndarray
) -> dict[str, list[float]]:
    grid = np.arange(_CURVE_POINTS) / (_CURVE_POINTS - 1)
    last_within = np.searchsorted(false_positive_rates, grid, side="right") - 1
    return {
        "false_positive_rates": grid.tolist(),
        "true_positive_rates": true_positive_rates[last_within].tolist(),
    }


DETECTION_FILE = "detection.json"


def measure_detection(
    detector: Detector, job: EvaluationJob, store: AdversarialStore
) -> dict[str, Any]:
    """Returns how many clean and adversarial images of the bare classifier the detector flags.

    The adversarial images are those that an evaluation stored for the bare classifier, each set
    once, and those of an attacker who knows the detector and its threshold, at the largest radius.

    Args:
        detector: Its squeezers and what its threshold is chosen on.
        job: The evaluation, with the bare classifier among its models.
        store: Where the evaluation linked its adversarial images, with their index.

    Returns:
        What `detection_summary` returned.

    Raises:
        SfmError: If there is no bare classifier, or a stored set is damaged.
    """
    name = guarded_model(job.models)
    if name is None:
        raise SfmError("The detector needs the bare classifier; add undefended to --defences.")
    samples, config = job.samples, job.config
    scored = score_clean(job.models[name], samples, config.attack_batch_size)
    squeezers = [parse_preprocessor(spec) for spec in split_chain(detector.squeezers)]
    score = squeezing_scorer(scored.classifier, squeezers, config.attack_batch_size)
    job.progress("detector", 0, len(samples))
    validation_scores = score(detector.validation_images)
    threshold = threshold_at(validation_scores)
    images = {
        **_stored_images(name, samples, config, store),
        ("adaptive", AWARE_ATTACK, max(config.epsilons)): _aware_images(
            detector, scored, job, threshold
        ),
    }
    attacks = [
        AttackedScores(*key, score(attacked), *_correctness(scored, samples, attacked))
        for key, attacked in images.items()
    ]
    summary = detection_summary(validation_scores, score(samples.images), attacks)
    job.progress("detector", len(samples), len(samples))
    return summary


def _stored_images(
    name: str, samples: Samples, config: EvaluationConfig, store: AdversarialStore
) -> dict[tuple[str, str, float | None], np.ndarray]:
    """Returns the images of each set of the bare classifier by threat model, attack and radius."""
    found, seen = {}, set()
    for entry in store.read_index():
        if entry.defence != name or entry.name in seen:
            continue
        seen.add(entry.name)
        is_few = ThreatModel(entry.threat_model).has_few_examples
        attacked = samples.first(config.decision_examples) if is_few else samples
        found[entry.threat_model, entry.attack, entry.epsilon] = _read(entry.name, attacked, store)
    return found


def _read(set_name: str, samples: Samples, store: AdversarialStore) -> np.ndarray:
    outcome = store.read(set_name, samples.images.shape)
    if outcome is None:
        raise SfmError(f"{store.path(set_name)} is gone; run the evaluation with --force.")
    return outcome.images


def _aware_images(
    detector: Detector, scored: ScoredModel, job: EvaluationJob, threshold: float
) -> np.ndarray:
    config = job.config
    epsilon = max(config.epsilons)
    attack = build_attack(
        AWARE_ATTACK,
        scored.classifier,
        epsilon / PIXEL_LEVELS,
        config,
        job.seed,
        step_size=step_size_at(epsilon, config) / PIXEL_LEVELS,
        threshold=threshold,
        squeezers=split_chain(detector.squeezers),
    )
    return attack.run(job.samples.images, job.samples.labels).images


def _correctness(
    scored: ScoredModel, samples: Samples, attacked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether the classifier is right on the attacked images, and on the clean ones."""
    labels = samples.labels[: len(attacked)]
    clean = np.argmax(scored.clean_logits[: len(attacked)], axis=1)
    return scored.predictions(attacked) == labels, clean == labels
