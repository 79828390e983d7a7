"""An evaluation on disk: the work of the evaluate stage, and the names of the files it leaves."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.artifacts.fingerprints import package_versions
from sfm_tf.artifacts.run_directory import Artifact
from sfm_tf.audit import blessing
from sfm_tf.audit import verdict as audit_verdict
from sfm_tf.audit.evidence import Evidence, count_classes
from sfm_tf.audit.probes.suite import run_probes
from sfm_tf.audit.rules import audit
from sfm_tf.audit.verdict import AUDIT_FILE, write_audit
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation import metrics, results, runner
from sfm_tf.evaluation.adversarial_store import AdversarialStore, Progress
from sfm_tf.evaluation.samples import Samples, check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel

ADVERSARIAL_FOLDER = "adversarial"
COSTS_FILE = "costs.json"
METRICS_FILE = "metrics.json"
PROBES_FILE = "probes.json"
RESULTS_FILE = "results.parquet"


def write_evaluation(
    models: Mapping[str, DefendedModel],
    source: keras.Model | None,
    images: np.ndarray,
    labels: np.ndarray,
    config: EvaluationConfig,
    seed: int,
    folder: pathlib.Path,
    store: pathlib.Path,
    progress: Progress,
) -> blessing.Blessing:
    """Evaluates models and writes all there is to say about them.

    Args:
        models: The models that are scored, by the names of their defences.
        source: Independent model that black-box attacks start from; None if they are not asked for.
        images: Float32 in [0, 1], shape `(count, height, width, channels)`.
        labels: Class indices of shape `(count,)`.
        config: Attacks, threat models, radii and the thresholds of the blessing.
        seed: Seed of the attacks.
        folder: Existing folder that is written to, adversarial images included.
        store: Folder of adversarial images that evaluations share and go on from.
        progress: Told of each batch.

    Returns:
        The verdict, which is also written.
    """
    with exact_float32():
        evaluation = runner.evaluate(models, source, images, labels, config, seed, store, progress)
        summary = metrics.summarise(evaluation.results, evaluation.vanished)
        subject = models[summary.subject]
        samples = check_samples(images, labels, subject.classifier)
        probes = _probe(subject, source, samples, config, seed, progress)
    believed = _audit(folder, evaluation, summary, probes, samples, config, seed)
    verdict = blessing.decide(summary, config, believed)
    own = AdversarialStore(folder / ADVERSARIAL_FOLDER)
    own.link(AdversarialStore(store), (entry.name for entry in evaluation.sets))
    own.write_index(evaluation.sets)
    results.write_results(folder / RESULTS_FILE, evaluation.results)
    write_json(folder / METRICS_FILE, summary.to_json())
    write_json(folder / COSTS_FILE, list(evaluation.costs))
    blessing.write_blessing(folder, verdict)
    return verdict


def _probe(
    subject: DefendedModel,
    source: keras.Model | None,
    samples: Samples,
    config: EvaluationConfig,
    seed: int,
    progress: Progress,
) -> dict[str, Any] | None:
    if not config.audit_examples:
        return None
    return run_probes(subject, source, samples.first(config.audit_examples), config, seed, progress)


def _audit(
    folder: pathlib.Path,
    evaluation: runner.Evaluation,
    summary: metrics.Metrics,
    probes: Mapping[str, Any] | None,
    samples: Samples,
    config: EvaluationConfig,
    seed: int,
) -> audit_verdict.AuditVerdict:
    """Audits an evaluation and writes what was found; returns how far it can be believed."""
    evidence = Evidence(
        metrics=summary,
        results=evaluation.results,
        probes=probes,
        config=config,
        class_counts=count_classes(samples.labels, samples.class_count),
        packages=package_versions(),
        seed=seed,
    )
    findings = audit(evidence)
    believed = audit_verdict.verdict(findings)
    if probes is not None:
        write_json(folder / PROBES_FILE, probes)
    write_audit(folder / AUDIT_FILE, findings, believed)
    return believed


def read_metrics(evaluation: Artifact) -> metrics.Metrics:
    """Returns the figures of an evaluation.

    Raises:
        SfmError: If the file is missing, damaged or of another version.
    """
    path = evaluation.folder / METRICS_FILE
    try:
        return metrics.Metrics.from_json(read_json(path))
    except (KeyError, TypeError) as error:
        raise SfmError(f"Cannot read {path} ({error}); run the evaluation again.") from error


def evaluation_settings(evaluation: Artifact) -> EvaluationConfig:
    """Returns the settings that an evaluation ran with."""
    values = evaluation.manifest.config["evaluation"]
    lists_as_tuples = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return EvaluationConfig(**lists_as_tuples)


def compared_settings(evaluation: Artifact) -> ComparedConfig:
    """Returns what the compared defences of an evaluation were made of."""
    return ComparedConfig(**evaluation.manifest.config["compared"])


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Keeps a GPU from computing float32 with the ten bits of TensorFloat-32 meanwhile."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
