"""Gathers what a report shows from the artifacts of the earlier stages."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.artifacts.run_directory import ADVERSARIAL_STAGE, Artifact, RunDirectory, fit_stage
from sfm_tf.artifacts.typed_json import Value, read_typed
from sfm_tf.audit.audited_evaluation import (
    ADVERSARIAL_FOLDER,
    COSTS_FILE,
    PROBES_FILE,
    RESULTS_FILE,
    evaluation_settings,
    read_metrics,
)
from sfm_tf.audit.blessing import read_blessing
from sfm_tf.audit.detection import DETECTION_FILE
from sfm_tf.audit.probes.measurements import Probes
from sfm_tf.audit.verdict import AUDIT_FILE, read_audit
from sfm_tf.defences.catalogue import FITTED
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.metrics import Metrics, break_down
from sfm_tf.evaluation.paired_answers import (
    NOT_ATTACKED,
    RIGHT,
    UNATTACKED,
    WRONG,
    paired_differences,
    right_answers,
)
from sfm_tf.evaluation.results import DEFENDED, ResultsTable, read_results
from sfm_tf.evaluation.runner import Cost
from sfm_tf.evaluation.significance import wilson_interval
from sfm_tf.records.schema import read_schema
from sfm_tf.records.statistics import STATISTICS_FILE
from sfm_tf.records.tfrecords import load_split
from sfm_tf.report.example_images import (
    StoredAttacks,
    defence_images,
    find_failures,
    mask_statistics,
    masks_of,
    perceive,
)
from sfm_tf.report.inputs import Audit, Gallery, RadiusAccuracy, ReportInputs, RowCommand
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
        inputs: Artifacts that the evaluation was made from, by stage: that of `ingest` and that of
            `train`, which the user's own model may do without; and what `find_studies` found.
        evaluation: Artifact of the evaluate stage.
        config: How many images the figures show.
        commands: What runs each row of the evaluation again.

    Raises:
        SfmError: If a file of an artifact is missing or damaged.
    """
    made, folder = _made_here(inputs, evaluation), evaluation.folder
    models = made.get("train")
    evaluated = _read_evaluated(inputs["ingest"], evaluation, config.gallery_examples)
    scored = [entry.defence for entry in evaluated.metrics.clean]
    return ReportInputs(
        **_evaluation_fields(experiment, inputs["ingest"], evaluation, evaluated.labels),
        history=read_json(models.folder / HISTORY_FILE) if models else {},
        manifests=[each.manifest for each in (*inputs.values(), evaluation)],
        costs=read_typed(tuple[Cost, ...], folder / COSTS_FILE),
        detection=_optional(Any, folder / DETECTION_FILE),
        training_seconds=training_seconds(made, scored),
        probes=_optional(Probes, folder / PROBES_FILE),
        commands=commands,
        **study_fields(inputs, evaluated.images[: evaluated.shown]),
        **_defence_fields(models, evaluated),
        **_result_fields(folder, evaluated),
    )


def _made_here(inputs: Mapping[str, Artifact], evaluation: Artifact) -> dict[str, Artifact]:
    """Returns the inputs without those that are not of the evaluated model.

    The black box of a user's own model may start from the trained source, but what else was trained
    has no part in it.
    """
    is_own = bool(evaluation_settings(evaluation).model)
    return {stage: made for stage, made in inputs.items() if not (is_own and stage == "train")}


def collect_card_inputs(
    experiment: str, inputs: Mapping[str, Artifact], evaluation: Artifact
) -> ReportInputs:
    """Returns what a model card shows: a report's inputs without its images and curves.

    Args:
        experiment: Name of the experiment.
        inputs: Artifacts that the evaluation was made from, by stage.
        evaluation: Artifact of the evaluate stage.

    Raises:
        SfmError: If a file of an artifact is missing or damaged.
    """
    settings = evaluation_settings(evaluation)
    records = inputs["ingest"]
    schema = read_schema(records.folder)
    _, labels = load_split(records.folder, "test", schema, settings.num_examples)
    return ReportInputs(
        **_evaluation_fields(experiment, records, evaluation, labels),
        history={},
        manifests=[
            *(inputs[stage].manifest for stage in ("ingest", "train") if stage in inputs),
            evaluation.manifest,
        ],
        gallery=None,
    )


def _evaluation_fields(
    experiment: str, records: Artifact, evaluation: Artifact, labels: np.ndarray
) -> dict[str, Any]:
    """Returns what a report and a model card have alike."""
    folder, class_names = evaluation.folder, read_schema(records.folder).class_names
    counts = collections.Counter(class_names[label] for label in labels)
    audit = folder / AUDIT_FILE
    return {
        "experiment": experiment,
        "dataset": records.manifest.config["data"]["dataset"],
        "statistics": read_json(records.folder / STATISTICS_FILE),
        "class_counts": {name: counts[name] for name in class_names},
        "evaluation": evaluation_settings(evaluation),
        "metrics": read_metrics(evaluation),
        "blessing": read_blessing(folder),
        "audit": Audit(*read_audit(audit)) if audit.exists() else None,
    }


def accuracy_by_radius(results: ResultsTable) -> list[RadiusAccuracy]:
    """Returns the accuracy of each defence after every attack of every threat model up to a radius.

    Args:
        results: Rows as `sfm_tf.evaluation.results.SCHEMA` describes them.

    Returns:
        For each defence an entry without an attack, of radius 0, and one for each radius. Images
        that no attack up to the radius was run on are left out.
    """
    answers = right_answers(results)
    clean = answers.pop(UNATTACKED)
    curve = []
    for defence, right in clean.items():
        attacked = collections.defaultdict(list)
        for condition, each in answers.items():
            if defence in each:
                attacked[condition.epsilon].append(each[defence])
        so_far: list[np.ndarray] = []
        curve.append(_radius_accuracy(defence, 0.0, right, [right]))
        for radius in sorted(attacked):
            so_far += attacked[radius]
            curve.append(_radius_accuracy(defence, radius, right, so_far))
    return curve


def _radius_accuracy(
    defence: str, radius: float, clean: np.ndarray, answers: Sequence[np.ndarray]
) -> RadiusAccuracy:
    table = np.stack(answers)
    was_seen = np.any(table != NOT_ATTACKED, axis=0)
    right = was_seen & (clean == RIGHT) & np.all(table != WRONG, axis=0)
    examples, correct = int(was_seen.sum()), int(right.sum())
    low, high = wilson_interval(correct, examples)
    return RadiusAccuracy(
        defence=defence,
        epsilon=radius,
        examples=examples,
        correct=correct,
        accuracy=correct / examples,
        accuracy_low=low,
        accuracy_high=high,
    )


@dataclasses.dataclass(frozen=True)
class _Evaluated:
    """What an evaluation ran on, and the `shown` first images that figures have."""

    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    metrics: Metrics
    attacks: StoredAttacks
    shown: int


def _read_evaluated(records: Artifact, evaluation: Artifact, shown: int) -> _Evaluated:
    schema, settings = read_schema(records.folder), evaluation_settings(evaluation)
    images, labels = load_split(records.folder, "test", schema, settings.num_examples)
    metrics = read_metrics(evaluation)
    store = AdversarialStore(evaluation.folder / ADVERSARIAL_FOLDER)
    attacks = StoredAttacks(store, metrics.subject, settings, images)
    return _Evaluated(images, labels, schema.class_names, metrics, attacks, shown)


def _optional(kind: type[Value], path: pathlib.Path) -> Value | None:
    return read_typed(kind, path) if path.exists() else None


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
    if evaluated.metrics.subject != DEFENDED:
        return fields
    attacked = evaluated.attacks.strongest_knowledge(evaluated.shown)
    return {**fields, "perceived": None if attacked is None else perceive(defended, attacked)}


def _result_fields(folder: pathlib.Path, evaluated: _Evaluated) -> dict[str, Any]:
    """Returns what the results of single images and the stored attacks tell."""
    results = read_results(folder / RESULTS_FILE)
    attacks, names, shown = evaluated.attacks, evaluated.class_names, evaluated.shown
    failures = find_failures(results, attacks.subject, attacks.settings.norm, names, shown)
    return {
        "perturbations": attacks.last_attacks(shown),
        "accuracy_by_radius": accuracy_by_radius(results),
        "paired": paired_differences(results, attacks.subject),
        "breakdown": break_down(results, attacks.subject, names),
        "failures": attacks.of_failures(failures),
    }
