"""What a model makes of clean and of adversarial images, as rows of results."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_inputs import check_logits
from sfm_tf.attacks.compiled_attack import NOT_FOUND, AttackOutcome
from sfm_tf.attacks.validity import perturbation_sizes
from sfm_tf.choices import PIXEL_LEVELS
from sfm_tf.evaluation.attack_plan import Use
from sfm_tf.evaluation.results import CLEAN, NO_THREAT, ResultsTable, results_rows
from sfm_tf.evaluation.samples import Samples
from sfm_tf.models.defended_model import DefendedModel

# Float32 perturbations of exactly the radius may come out a rounding above it.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class ScoredModel:
    """A model whose accuracy is measured, and its logits of the clean images."""

    classifier: TensorFlowV2Classifier
    clean_logits: np.ndarray

    def predictions(self, images: np.ndarray) -> np.ndarray:
        """Returns the classes of images of shape `(count, height, width, channels)`."""
        return np.argmax(self.classifier.predict(images), axis=1)


def score_clean(model: DefendedModel, samples: Samples, batch_size: int) -> ScoredModel:
    """Returns the model with what it makes of the clean images.

    Raises:
        SfmError: If it does not return finite logits.
    """
    classifier = samples.wrap(model, batch_size)
    logits = classifier.predict(samples.images)
    check_logits(logits, samples.class_count)
    return ScoredModel(classifier, logits)


def clean_outcome(classifier: TensorFlowV2Classifier, samples: Samples) -> AttackOutcome:
    """Returns the clean images as the outcome of an attack that changes nothing."""
    nothing = np.zeros(len(samples), np.int32)
    losses = _cross_entropy(classifier.predict(samples.images), samples)
    return AttackOutcome(samples.images, losses, nothing, nothing.astype(bool))


def clean_rows(defence: str, model: ScoredModel, samples: Samples) -> ResultsTable:
    """Returns a row for each clean image."""
    prediction = np.argmax(model.clean_logits, axis=1)
    values = {
        "label": samples.labels,
        "defence": defence,
        "threat_model": NO_THREAT,
        "attack": CLEAN,
        "epsilon": 0.0,
        "clean_prediction": prediction,
        "prediction": prediction,
        "linf": 0.0,
        "l2": 0.0,
        "iterations": 0,
        "loss": _cross_entropy(model.clean_logits, samples),
        "zero_gradient": False,
    }
    return results_rows(len(samples), values)


def attack_rows(
    use: Use,
    attack_name: str,
    epsilon: float,
    outcome: AttackOutcome,
    model: ScoredModel,
    samples: Samples,
) -> ResultsTable:
    """Returns a row for each image of an attack's outcome.

    Args:
        use: The defence and the threat model.
        attack_name: The attack.
        epsilon: Its radius in 1/255; infinite where it found its own.
        outcome: What it made of the samples.
        model: The model of that defence.
        samples: The images that were attacked, the first ones of those scored clean.
    """
    values = {
        "label": samples.labels,
        "defence": use.defence,
        "threat_model": use.threat_model,
        "attack": attack_name,
        "epsilon": epsilon,
        "clean_prediction": np.argmax(model.clean_logits[: len(samples)], axis=1),
        "prediction": model.predictions(outcome.images),
        "linf": perturbation_sizes(samples.images, outcome.images, np.inf),
        "l2": perturbation_sizes(samples.images, outcome.images, 2.0),
        "iterations": outcome.iterations,
        "loss": outcome.loss,
        "zero_gradient": outcome.zero_gradient,
    }
    return results_rows(len(samples), values)


def within_radii(
    outcome: AttackOutcome,
    clean: AttackOutcome,
    samples: Samples,
    epsilons: Sequence[float],
    norm: float,
) -> Iterator[tuple[float, AttackOutcome]]:
    """Yields an outcome of smallest perturbations, then what is left of it in each ball.

    Where the perturbation is larger than the radius, an attacker who is held to the ball is left
    with the clean image.

    Args:
        outcome: What an attack for the smallest perturbation made.
        clean: The clean images' own outcome on the same model.
        samples: The images that were attacked.
        epsilons: Radii in 1/255.
        norm: Order of the norm: `math.inf` or 2.
    """
    yield math.inf, outcome
    sizes = perturbation_sizes(samples.images, outcome.images, norm)
    for epsilon in epsilons:
        inside = sizes <= epsilon / PIXEL_LEVELS + _ROUNDING
        kept = {
            "images": np.where(inside[:, None, None, None], outcome.images, clean.images),
            "loss": np.where(inside, outcome.loss, clean.loss),
            "iterations": np.where(inside, outcome.iterations, NOT_FOUND),
            "zero_gradient": outcome.zero_gradient,
        }
        yield epsilon, AttackOutcome(**kept)


def _cross_entropy(logits: np.ndarray, samples: Samples) -> np.ndarray:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(samples.labels, logits).numpy()
