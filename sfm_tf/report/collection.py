"""Gathers what a report shows from the artifacts of the earlier stages."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.artifacts.run_directory import Artifact
from sfm_tf.audit.stored_audit import AUDIT_FILE, read_audit
from sfm_tf.config import EvaluationConfig, Experiment, ReportConfig
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.blessing import read_blessing
from sfm_tf.evaluation.breakdown import break_down
from sfm_tf.evaluation.paired import paired_differences
from sfm_tf.evaluation.results import DEFENDED, read_results
from sfm_tf.evaluation.stored_detection import DETECTION_FILE
from sfm_tf.evaluation.stored_evaluation import (
    ADVERSARIAL_FOLDER,
    COSTS_FILE,
    METRICS_FILE,
    PROBES_FILE,
    RESULTS_FILE,
    evaluation_settings,
)
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import read_schema
from sfm_tf.records.statistics import STATISTICS_FILE
from sfm_tf.report.mask_statistics import mask_statistics
from sfm_tf.report.perceived_perturbation import perceive
from sfm_tf.report.report_inputs import Audit, ReportInputs
from sfm_tf.report.row_commands import row_commands
from sfm_tf.report.shown_images import (
    defence_images,
    failure_images,
    masks_of,
    perturbations,
    strongest_knowledge,
)
from sfm_tf.report.studies import study_fields
from sfm_tf.report.training_costs import training_seconds
from sfm_tf.report.worst_failures import find_failures
from sfm_tf.training.loading import load_defended_model
from sfm_tf.training.model_files import HISTORY_FILE

_MASKED_EXAMPLES = 512
"""Most images whose masks are measured; more would take longer and hardly move the means."""


def collect_inputs(
    experiment: str,
    inputs: Mapping[str, Artifact],
    evaluation: Artifact,
    config: ReportConfig,
    preset: Experiment | None = None,
) -> ReportInputs:
    """Returns the inputs of the report on one evaluation.

    Args:
        experiment: Name of the experiment.
        inputs: Artifacts that the evaluation was made from, by stage: that of `ingest` and, unless
            it is of the user's own model, that of `train`; and what `studies.find_studies` found.
        evaluation: Artifact of the evaluate stage.
        config: How many images the figures show.
        preset: What the settings of the evaluation started from; None leaves out the commands that
            run rows of it again.

    Raises:
        SfmError: If a file of an artifact is missing or damaged.
    """
    records, models, folder = inputs["ingest"], inputs.get("train"), evaluation.folder
    metrics = read_json(folder / METRICS_FILE)
    evaluated = _read_evaluated(records, evaluation, metrics["subject"], config.gallery_examples)
    counts = Counter(evaluated.class_names[label] for label in evaluated.labels)
    return ReportInputs(
        experiment=experiment,
        dataset=records.manifest.config["data"]["dataset"],
        statistics=read_json(records.folder / STATISTICS_FILE),
        class_counts={name: counts[name] for name in evaluated.class_names},
        evaluation=evaluated.settings,
        metrics=metrics,
        blessing=read_blessing(folder),
        history=read_json(models.folder / HISTORY_FILE) if models else {},
        manifests=[made.manifest for made in (*inputs.values(), evaluation)],
        costs=read_json(folder / COSTS_FILE),
        detection=_optional(folder / DETECTION_FILE),
        training_seconds=training_seconds(inputs, [e["defence"] for e in metrics["clean"]]),
        audit=_audit(folder),
        probes=_optional(folder / PROBES_FILE),
        commands=tuple(row_commands(preset, evaluation.manifest, metrics)) if preset else (),
        **study_fields(inputs, evaluated.images[: evaluated.shown]),
        **_defence_fields(models, evaluated),
        **_result_fields(folder, evaluated),
    )


@dataclasses.dataclass(frozen=True)
class _Evaluated:
    """What an evaluation ran on, and the `shown` first images that figures have."""

    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    settings: EvaluationConfig
    subject: str
    store: AdversarialStore
    shown: int


def _read_evaluated(
    records: Artifact, evaluation: Artifact, subject: str, shown: int
) -> _Evaluated:
    schema, settings = read_schema(records.folder), evaluation_settings(evaluation)
    images, labels = load_split(records.folder, "test", schema, settings.num_examples)
    store = AdversarialStore(evaluation.folder / ADVERSARIAL_FOLDER)
    return _Evaluated(images, labels, schema.class_names, settings, subject, store, shown)


def _optional(path: pathlib.Path) -> Any:
    return read_json(path) if path.exists() else None


def _audit(folder: pathlib.Path) -> Audit | None:
    path = folder / AUDIT_FILE
    return Audit(*read_audit(path)) if path.exists() else None


def _defence_fields(models: Artifact | None, evaluated: _Evaluated) -> dict[str, Any]:
    """Returns what only a defence that was trained here has."""
    if models is None:
        return {"gallery": None}
    defended = load_defended_model(models.folder)
    images, labels, names = evaluated.images, evaluated.labels, evaluated.class_names
    measured = slice(_MASKED_EXAMPLES)
    fields = {
        "gallery": defence_images(defended, images[: evaluated.shown]),
        "masks": mask_statistics(masks_of(defended, images[measured]), labels[measured], names),
    }
    if evaluated.subject != DEFENDED:
        return fields
    attacked = strongest_knowledge(
        evaluated.store, DEFENDED, evaluated.settings, images, evaluated.shown
    )
    return {**fields, "perceived": None if attacked is None else perceive(defended, attacked)}


def _result_fields(folder: pathlib.Path, evaluated: _Evaluated) -> dict[str, Any]:
    """Returns what the results of single images and the stored attacks tell."""
    results = read_results(folder / RESULTS_FILE)
    subject, names, shown = evaluated.subject, evaluated.class_names, evaluated.shown
    settings, images, store = evaluated.settings, evaluated.images, evaluated.store
    failures = find_failures(results, subject, settings.norm, names, shown)
    return {
        "perturbations": list(perturbations(store, subject, settings, images, shown)),
        "paired": paired_differences(results, subject),
        "breakdown": break_down(results, subject, names),
        "failures": failure_images(store, subject, settings, images, failures),
    }
