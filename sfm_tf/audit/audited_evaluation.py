"""An evaluation on disk: the work of the evaluate stage, and the names of the files it leaves."""

import dataclasses
import pathlib
from collections.abc import Mapping

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.fingerprints import package_versions
from sfm_tf.artifacts.run_directory import Artifact
from sfm_tf.artifacts.typed_json import read_typed
from sfm_tf.audit.blessing import Blessing, decide, write_blessing
from sfm_tf.audit.detection import DETECTION_FILE, measure_detection
from sfm_tf.audit.evidence import Evidence, count_classes
from sfm_tf.audit.probes.measurements import Repeatability
from sfm_tf.audit.probes.repeatability import measure_repeatability
from sfm_tf.audit.probes.suite import run_probes
from sfm_tf.audit.rules import audit
from sfm_tf.audit.verdict import AUDIT_FILE, verdict, write_audit
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.attack_catalogue import ATTACKS
from sfm_tf.evaluation.job import EvaluationJob
from sfm_tf.evaluation.metrics import Metrics, summarise
from sfm_tf.evaluation.results import write_results
from sfm_tf.evaluation.runner import EvaluationOutcome, exact_float32, run_evaluation
from sfm_tf.evaluation.settings import EvaluationConfig

ADVERSARIAL_FOLDER = "adversarial"
COSTS_FILE = "costs.json"
METRICS_FILE = "metrics.json"
PROBES_FILE = "probes.json"
RESULTS_FILE = "results.parquet"


def write_evaluation(job: EvaluationJob, folder: pathlib.Path) -> Blessing:
    """Evaluates models and writes all there is to say about them.

    Args:
        job: The models, the images and the settings.
        folder: Existing folder that is written to, adversarial images included.

    Returns:
        The verdict, which is also written.
    """
    with exact_float32():
        outcome = run_evaluation(job)
        metrics = summarise(outcome.results, outcome.vanished)
        # Without this no figure means anything; it costs next to nothing, so it is never left out.
        repeatability = measure_repeatability(
            job.models[metrics.subject], job.samples, job.config.attack_batch_size
        )
        evidence = _evidence(job, outcome, metrics, repeatability)
        if job.config.audit_examples:
            probes = run_probes(metrics.subject, job, evidence.is_random)
            evidence = dataclasses.replace(evidence, probes=probes)
    findings = audit(evidence)
    believed = verdict(findings)
    blessing = decide(metrics, job.config, believed)
    own = AdversarialStore(folder / ADVERSARIAL_FOLDER)
    own.link(job.store, (entry.name for entry in outcome.sets))
    own.write_index(outcome.sets)
    write_results(folder / RESULTS_FILE, outcome.results)
    write_json(folder / METRICS_FILE, dataclasses.asdict(metrics))
    write_json(folder / COSTS_FILE, [dataclasses.asdict(cost) for cost in outcome.costs])
    if evidence.probes is not None:
        write_json(folder / PROBES_FILE, evidence.probes.to_json())
    write_audit(folder / AUDIT_FILE, findings, believed)
    write_blessing(folder, blessing)
    if job.detector is not None:
        with exact_float32():
            write_json(folder / DETECTION_FILE, measure_detection(job.detector, job, own))
    return blessing


def _evidence(
    job: EvaluationJob,
    outcome: EvaluationOutcome,
    metrics: Metrics,
    repeatability: Mapping[str, Repeatability],
) -> Evidence:
    return Evidence(
        metrics=metrics,
        results=outcome.results,
        probes=None,
        config=job.config,
        class_counts=count_classes(job.samples.labels, job.samples.class_count, job.class_names),
        repeatability=repeatability,
        packages=package_versions(),
        seed=job.seed,
    )


def read_metrics(evaluation: Artifact) -> Metrics:
    """Returns the figures of an evaluation.

    Raises:
        SfmError: If the file is missing, damaged or of another version.
    """
    metrics = read_typed(Metrics, evaluation.folder / METRICS_FILE)
    attacks = {entry.attack for entry in (*metrics.under_attack, *metrics.minimum_norm)}
    if unknown := sorted(attacks - ATTACKS.keys()):
        raise _of_another_version(evaluation, f"it ran {', '.join(unknown)}")
    return metrics


def _of_another_version(evaluation: Artifact, what: str) -> SfmError:
    return SfmError(
        f"{evaluation.folder} was made by another version of this program: {what}, which this "
        "version does not have. Run `pipelines.evaluate` again."
    )


def evaluation_settings(evaluation: Artifact) -> EvaluationConfig:
    """Returns the settings that an evaluation ran with.

    Raises:
        SfmError: If it is of another version.
    """
    values = evaluation.manifest.config["evaluation"]
    lists_as_tuples = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    known = {field.name for field in dataclasses.fields(EvaluationConfig)}
    if unknown := sorted(lists_as_tuples.keys() - known):
        raise _of_another_version(evaluation, f"it had the settings {', '.join(unknown)}")
    return EvaluationConfig(**lists_as_tuples)


def compared_settings(evaluation: Artifact) -> ComparedConfig:
    """Returns what the compared defences of an evaluation were made of."""
    return ComparedConfig(**evaluation.manifest.config["compared"])
