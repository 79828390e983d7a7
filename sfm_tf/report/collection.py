"""Gathers what a report shows from the artifacts of the earlier stages."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.artifacts.run_directory import ADVERSARIAL_STAGE, Artifact, RunDirectory, fit_stage
from sfm_tf.audit.audited_evaluation import (
    ADVERSARIAL_FOLDER,
    COSTS_FILE,
    METRICS_FILE,
    PROBES_FILE,
    RESULTS_FILE,
    evaluation_settings,
)
from sfm_tf.audit.blessing import read_blessing
from sfm_tf.audit.detection import DETECTION_FILE
from sfm_tf.audit.verdict import AUDIT_FILE, read_audit
from sfm_tf.defences.catalogue import FITTED
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.metrics import break_down
from sfm_tf.evaluation.paired_answers import paired_differences
from sfm_tf.evaluation.results import DEFENDED, read_results
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.records.schema import read_schema
from sfm_tf.records.statistics import STATISTICS_FILE
from sfm_tf.records.tfrecords import load_split
from sfm_tf.report.example_images import (
    defence_images,
    failure_images,
    find_failures,
    mask_statistics,
    masks_of,
    perceive,
    perturbations,
    strongest_knowledge,
)
from sfm_tf.report.report_inputs import Audit, Gallery, ReportInputs, RowCommand
from sfm_tf.report.settings import ReportConfig
from sfm_tf.training.model_files import HISTORY_FILE, TIMING_FILE, load_defended_model
from sfm_tf.tuning.ablations import read_ablations
from sfm_tf.tuning.best import sparsity_curve

TUNE, ABLATE = "tune", "ablate"


def find_studies(run_directory: RunDirectory, records: Artifact) -> dict[str, Artifact]:
    """Returns the latest artifacts of the stages tune and ablate that were made from `records`.

    Args:
        run_directory: Where they are; a stage that has not run adds nothing.
        records: Artifact of the ingest stage.

    Raises:
        SfmError: If a latest artifact was deleted.
    """
    latest = {
        stage: run_directory.latest(stage)
        for stage in (TUNE, ABLATE)
        if run_directory.has_finished(stage)
    }
    fingerprint = records.manifest.fingerprint
    return {
        stage: artifact
        for stage, artifact in latest.items()
        if artifact.manifest.inputs["ingest"] == fingerprint
    }


def study_fields(inputs: Mapping[str, Artifact], images: np.ndarray) -> dict[str, Any]:
    """Returns the fields `tuning`, `ablations` and `ablation_scores` of the report's inputs.

    Args:
        inputs: Artifacts by stage, what `find_studies` returned among them.
        images: The images that the report shows, float32 in [0, 1], channels last.

    Raises:
        SfmError: If a file of an artifact is missing or damaged.
    """
    fields: dict[str, Any] = {}
    if TUNE in inputs:
        fields["tuning"] = sparsity_curve(inputs[TUNE].folder)
    if ABLATE in inputs:
        folder = inputs[ABLATE].folder
        scores = read_ablations(folder)
        fields["ablation_scores"] = scores
        fields["ablations"] = {
            entry["words"]: _gallery(folder / entry["name"], images)
            for entry in scores
            if not entry["failure"]
        }
    return fields


def _gallery(folder: pathlib.Path, images: np.ndarray) -> Gallery:
    return defence_images(load_defended_model(folder), images)


def training_seconds(inputs: Mapping[str, Artifact], defences: Iterable[str]) -> dict[str, float]:
    """Returns the seconds of training for each defence, the classifier's included.

    Args:
        inputs: Artifacts that an evaluation was made from, by stage.
        defences: Names of the defences that were evaluated.

    Returns:
        Seconds by defence; a defence that learns nothing costs what the classifier costs, which
        an alternation by steps never trains alone: then it is what as many passes over the images
        took for the source model, of the same architecture. Empty where nothing was trained here.
    """
    if "train" not in inputs:
        return {}
    timing = _timing(inputs["train"])
    classifier = _classifier_seconds(timing, inputs["train"].manifest.config)
    trained = {
        "sfm": sum(timing[part] for part in timing if part != "source_seconds"),
        **_adversarial_seconds(inputs),
    }
    fits = {
        name: classifier + inputs[fit_stage(name)].manifest.wall_seconds
        for name in FITTED
        if fit_stage(name) in inputs
    }
    return {name: {**fits, **trained}.get(name, classifier) for name in defences}


def _classifier_seconds(timing: Mapping[str, float], config: Mapping[str, Any]) -> float:
    if "both_seconds" not in timing:
        return timing["classifier_seconds"]
    training = config["training"]
    passes = training["pretraining_epochs"] + training["epochs"]
    return timing["source_seconds"] * passes / training["source_epochs"]


def _adversarial_seconds(inputs: Mapping[str, Artifact]) -> dict[str, float]:
    if ADVERSARIAL_STAGE not in inputs:
        return {}
    timing = _timing(inputs[ADVERSARIAL_STAGE])
    return {name: sum(parts.values()) for name, parts in timing.items()}


def _timing(models: Artifact) -> dict:
    return read_json(models.folder / TIMING_FILE)


_MASKED_EXAMPLES = 512
"""Most images whose masks are measured; more would take longer and hardly move the means."""


def collect_inputs(
    experiment: str,
    inputs: Mapping[str, Artifact],
    evaluation: Artifact,
    config: ReportConfig,
    commands: Sequence[RowCommand] = (),
) -> ReportInputs:
    """Returns the inputs of the report on one evaluation.

    Args:
        experiment: Name of the experiment.
        inputs: Artifacts that the evaluation was made from, by stage: that of `ingest` and, unless
            it is of the user's own model, that of `train`; and what `studies.find_studies` found.
        evaluation: Artifact of the evaluate stage.
        config: How many images the figures show.
        commands: What runs each row of the evaluation again.

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
        commands=commands,
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
