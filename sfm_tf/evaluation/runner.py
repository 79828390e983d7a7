"""Runs every attack under every threat model and scores both models on what they make."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.artifacts.fingerprints import code_version, fingerprint, package_versions
from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.attack_inputs import check_images, check_labels, check_logits
from sfm_tf.attacks.catalogue import build_attack
from sfm_tf.attacks.compiled_attack import AttackOutcome, CompiledAttack
from sfm_tf.attacks.threat_models import ThreatModel, attacked_model
from sfm_tf.attacks.validity import faults, perturbation_sizes
from sfm_tf.config import PIXEL_LEVELS, EvaluationConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore, StoredSet
from sfm_tf.evaluation.model_digest import model_digest
from sfm_tf.evaluation.results import (
    CLEAN,
    DEFENDED,
    NO_THREAT,
    UNDEFENDED,
    ResultsTable,
    join_results,
    results_rows,
)
from sfm_tf.models.defended_model import DefendedModel

Progress = Callable[[str, int, int], None]
"""Called with a phrase, the attacks done and their total."""


@dataclasses.dataclass(frozen=True)
class _Samples:
    """The images everything is measured on, checked."""

    images: np.ndarray
    labels: np.ndarray
    class_count: int

    def digest(self) -> str:
        digest = hashlib.sha256(str(self.images.shape).encode("utf-8"))
        digest.update(self.images.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def wrap(self, model: keras.Model, config: EvaluationConfig) -> TensorFlowV2Classifier:
        shape = self.images.shape[1:]
        return wrap_classifier(model, self.class_count, shape, config.attack_batch_size)


@dataclasses.dataclass(frozen=True)
class _ScoredModel:
    """A model whose accuracy is measured, and its logits of the clean images."""

    classifier: TensorFlowV2Classifier
    clean_logits: np.ndarray

    def predictions(self, images: np.ndarray) -> np.ndarray:
        return np.argmax(self.classifier.predict(images), axis=1)


@dataclasses.dataclass(frozen=True)
class _GradientSource:
    """A model that attacks are run on, and every (defence, threat model) it stands for."""

    digest: str
    model: keras.Model
    uses: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class _AttackRun:
    """One attack at one radius (in 1/255) on one gradient source."""

    source: _GradientSource
    attack_name: str
    epsilon: float
    attack: CompiledAttack

    def describe(self) -> str:
        targets = ", ".join(f"{defence} {threat}" for defence, threat in self.source.uses)
        return f"{self.attack_name} {self.epsilon:g}/255 ({targets})"


def evaluate(
    defended: DefendedModel,
    undefended: DefendedModel,
    source: keras.Model | None,
    images: np.ndarray,
    labels: np.ndarray,
    config: EvaluationConfig,
    seed: int,
    folder: pathlib.Path,
    progress: Progress,
) -> ResultsTable:
    """Attacks both models and scores them (Yu et al. 2022, section 6.1).

    Adversarial images are made once per distinct gradient source: both models share those of the
    black box, and gray and white box of the undefended model are the same. They are kept in
    `folder`, and a set that an earlier call finished is used again if its models, images, attack,
    seed and code are the same.

    Args:
        defended: Classifier behind masker and pre-processing.
        undefended: The bare classifier it is compared with.
        source: Independent model that black-box attacks start from; None if they are not asked for.
        images: Float32 in [0, 1], shape `(batch, height, width, channels)`.
        labels: Class indices of shape `(batch,)`.
        config: Attacks, threat models and radii.
        seed: Seed of the attacks.
        folder: Where adversarial images are kept.
        progress: Told of each step.

    Returns:
        The clean rows of both models, then the rows of every attack.

    Raises:
        SfmError: If an argument does not fit the others or a stored set is damaged.
    """
    _check_config(config)
    models = {UNDEFENDED: undefended, DEFENDED: defended}
    for name, model in {**models, "source": source}.items():
        _check_precision(name, model)
    samples = _check_samples(images, labels, defended.classifier)
    runs = list(_attack_runs(_gradient_sources(models, source, config), samples, config, seed))
    progress("clean images", 0, len(runs))
    scored = {name: _score_clean(model, samples, config) for name, model in models.items()}
    tables = [_clean_rows(name, model, samples) for name, model in scored.items()]
    store, index = AdversarialStore(folder), []
    circumstances = {
        "samples": samples.digest(),
        "code": code_version(__name__),
        "packages": package_versions(),
    }
    for done, run in enumerate(runs):
        progress(run.describe(), done, len(runs))
        name, outcome = _outcome(run, samples, store, circumstances)
        tables += _attack_rows(run, outcome, scored, samples)
        index += [
            StoredSet(defence, threat_model, run.attack_name, run.epsilon, name)
            for defence, threat_model in run.source.uses
        ]
    store.write_index(index)
    progress("all attacks", len(runs), len(runs))
    return join_results(tables)


def _check_config(config: EvaluationConfig) -> None:
    for name in ("attacks", "threat_models", "epsilons"):
        if not getattr(config, name):
            raise SfmError(f"Invalid {name} (); expected one or more.")


def _check_precision(name: str, model: keras.Model | None) -> None:
    layers = [] if model is None else list(model.layers)
    while layers:
        layer = layers.pop()
        layers += layer.layers if isinstance(layer, keras.Model) else []
        if layer.compute_dtype != "float32":
            raise SfmError(
                f"Model {name} computes layer {layer.name!r} in {layer.compute_dtype}; expected "
                "float32. Build it anew under the float32 dtype policy with the same weights."
            )


def _check_samples(images: np.ndarray, labels: np.ndarray, classifier: keras.Model) -> _Samples:
    images = check_images(images, classifier.input_shape[1:])
    class_count = classifier.output_shape[-1]
    return _Samples(images, check_labels(labels, len(images), class_count), class_count)


def _gradient_sources(
    models: Mapping[str, DefendedModel], source: keras.Model | None, config: EvaluationConfig
) -> list[_GradientSource]:
    attacked: dict[str, keras.Model] = {}
    uses: dict[str, list[tuple[str, str]]] = {}
    for defence, model in models.items():
        for threat_model in config.threat_models:
            target = attacked_model(ThreatModel(threat_model), model, source)
            digest = model_digest(target)
            attacked.setdefault(digest, target)
            uses.setdefault(digest, []).append((defence, threat_model))
    return [_GradientSource(digest, attacked[digest], tuple(uses[digest])) for digest in attacked]


def _attack_runs(
    sources: list[_GradientSource], samples: _Samples, config: EvaluationConfig, seed: int
) -> Iterator[_AttackRun]:
    for source in sources:
        classifier = samples.wrap(source.model, config)
        for name in config.attacks:
            # One attack for all radii: it is compiled once.
            radius = config.epsilons[0] / PIXEL_LEVELS
            attack = build_attack(name, classifier, radius, config, seed)
            for epsilon in config.epsilons:
                yield _AttackRun(source, name, epsilon, attack)


def _score_clean(model: DefendedModel, samples: _Samples, config: EvaluationConfig) -> _ScoredModel:
    classifier = samples.wrap(model, config)
    logits = classifier.predict(samples.images)
    check_logits(logits, samples.class_count)
    return _ScoredModel(classifier, logits)


def _clean_rows(name: str, model: _ScoredModel, samples: _Samples) -> ResultsTable:
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(samples.labels, model.clean_logits)
    prediction = np.argmax(model.clean_logits, axis=1)
    values = {
        "label": samples.labels,
        "defence": name,
        "threat_model": NO_THREAT,
        "attack": CLEAN,
        "epsilon": 0.0,
        "clean_prediction": prediction,
        "prediction": prediction,
        "linf": 0.0,
        "l2": 0.0,
        "loss": losses.numpy(),
        "zero_gradient": False,
    }
    return results_rows(len(samples.images), values)


def _outcome(
    run: _AttackRun, samples: _Samples, store: AdversarialStore, circumstances: Mapping[str, Any]
) -> tuple[str, AttackOutcome]:
    """Returns the adversarial images' name and themselves, made now or stored earlier."""
    run.attack.set_params(epsilon=run.epsilon / PIXEL_LEVELS)
    name = f"{run.attack_name}-{run.epsilon:g}-{_fingerprint(run, circumstances)[:16]}"
    outcome = store.read(name, samples.images.shape)
    if outcome is None:
        outcome = run.attack.run(samples.images, samples.labels)
        store.write(name, outcome)
    found = faults(samples.images, outcome.images, run.attack.epsilon, float(run.attack.norm))
    if found:
        raise SfmError(
            f"Stored set {store.path(name)} is not valid: {'; '.join(found)}. Delete it."
        )
    return name, outcome


def _fingerprint(run: _AttackRun, circumstances: Mapping[str, Any]) -> str:
    # The batch size is left out: it changes no image.
    options = [option for option in run.attack.attack_params if option != "batch_size"]
    values = {
        **circumstances,
        "gradient_source": run.source.digest,
        "attack": run.attack_name,
        "options": {option: str(getattr(run.attack, option)) for option in options},
    }
    return fingerprint(values)


def _attack_rows(
    run: _AttackRun,
    outcome: AttackOutcome,
    scored: Mapping[str, _ScoredModel],
    samples: _Samples,
) -> list[ResultsTable]:
    defences = dict.fromkeys(defence for defence, _ in run.source.uses)
    predictions = {name: scored[name].predictions(outcome.images) for name in defences}
    common = {
        "label": samples.labels,
        "attack": run.attack_name,
        "epsilon": run.epsilon,
        "linf": perturbation_sizes(samples.images, outcome.images, np.inf),
        "l2": perturbation_sizes(samples.images, outcome.images, 2.0),
        "loss": outcome.loss,
        "zero_gradient": outcome.zero_gradient,
    }
    tables = []
    for defence, threat_model in run.source.uses:
        values = {
            **common,
            "defence": defence,
            "threat_model": threat_model,
            "clean_prediction": np.argmax(scored[defence].clean_logits, axis=1),
            "prediction": predictions[defence],
        }
        tables.append(results_rows(len(samples.images), values))
    return tables
