"""The sections of a report, in their order; every document shows the same ones."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sfm_tf.config import EvaluationConfig
from sfm_tf.report.figures import (
    Bar,
    ReportFigure,
    accuracy_chart,
    defence_gallery,
    perturbation_gallery,
    training_curves,
)
from sfm_tf.report.paper import CAVEAT, comparison_table
from sfm_tf.report.report_inputs import ReportInputs
from sfm_tf.report.statements import (
    precision_statement,
    shown_threat_models,
    threat_model_statement,
)
from sfm_tf.report.tables import (
    Table,
    accuracy_entries,
    accuracy_table,
    attack_name,
    defences,
    find_entry,
    minimum_norm_table,
    plain_table,
    worst_case_table,
)

_CURVES = (
    ("training", "classification_loss"),
    ("training", "mask_loss"),
    ("training", "sparsity"),
    ("training", "semantic"),
    ("training", "reconstruction"),
    ("validation", "mask_mean"),
    ("validation", "bare_accuracy"),
    ("validation", "defended_accuracy"),
)


@dataclasses.dataclass(frozen=True)
class Section:
    """One section: a heading, then paragraphs, tables and figures in this order.

    Attributes:
        title: The heading.
        paragraphs: Plain text.
        tables: Tables.
        figures: Figures.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[ReportFigure, ...] = ()


def build_sections(inputs: ReportInputs) -> tuple[Section, ...]:
    """Returns the sections of a report, its figures drawn."""
    return tuple(_sections(inputs))


def _sections(inputs: ReportInputs) -> Iterator[Section]:
    threat_models = shown_threat_models(inputs.evaluation)
    worst = worst_case_table(inputs.metrics, threat_models)
    explanation = (
        "An image counts as right only if the model is right on it without an attack and after "
        "every attack of the column. Named is the attack that turned most images wrong."
    )
    yield Section("Worst case", (explanation,), (worst,))
    for threat_model, name in threat_models.items():
        yield _threat_model_section(inputs, threat_model, name)
    comparison = comparison_table(inputs.dataset, inputs.metrics)
    if comparison is not None and inputs.evaluation.norm == "inf":
        yield Section("Beside the paper", (CAVEAT,), (comparison,))
    if inputs.gallery is not None:
        gallery = dataclasses.astuple(inputs.gallery)
        yield Section("What the defence does", figures=(defence_gallery("defence", *gallery),))
    if inputs.history:
        yield _training_section(inputs.history)
    yield _data_section(inputs)
    yield _provenance_section(inputs)


def _threat_model_section(inputs: ReportInputs, threat_model: str, name: str) -> Section:
    title = name.capitalize()
    config, metrics = inputs.evaluation, inputs.metrics
    figures = []
    if find_entry(metrics["under_attack"], threat_model=threat_model):
        figures.append(_accuracy_figure(metrics, threat_model, title, config))
    for perturbation in inputs.perturbations:
        if perturbation.threat_model == threat_model:
            attack, epsilon = perturbation.attack, perturbation.epsilon
            figure = perturbation_gallery(
                f"perturbation_{threat_model}_{attack}_{epsilon:g}",
                f"{title}, {attack_name(attack)}",
                epsilon,
                perturbation.images,
                perturbation.adversarial_images,
            )
            figures.append(figure)
    table = accuracy_table(
        metrics, threat_model, f"{title}: accuracy and 95% interval", config.epsilons
    )
    smallest = minimum_norm_table(metrics, threat_model)
    tables = (table,) if smallest is None else (table, smallest)
    statement = (
        *threat_model_statement(threat_model, config),
        *precision_statement(metrics, threat_model, config),
    )
    return Section(title, statement, tables, tuple(figures))


def _accuracy_figure(
    metrics: Mapping[str, Any], threat_model: str, title: str, config: EvaluationConfig
) -> ReportFigure:
    lines = {
        label: accuracy_entries(metrics, defence, threat_model, config.epsilons)
        for defence, label in defences(metrics)
    }
    groups = [column.replace(" ", "\n") for column in next(iter(lines.values()))]
    bars = {label: [_bar(entry) for entry in line.values()] for label, line in lines.items()}
    return accuracy_chart(f"accuracy_{threat_model}", title, groups, bars)


def _bar(entry: Mapping[str, Any] | None) -> Bar | None:
    if entry is None:
        return None
    return Bar(entry["accuracy"], entry["accuracy_low"], entry["accuracy_high"])


def _training_section(history: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
    epochs = history["defence"]
    curves = {
        f"{name.replace('_', ' ')} ({split})": [
            epoch[split].get(name, math.nan) for epoch in epochs
        ]
        for split, name in _CURVES
        if any(name in epoch[split] for epoch in epochs)
    }
    last = epochs[-1]["validation"].items()
    rows = ((name.replace("_", " "), f"{value:.4g}") for name, value in last)
    table = plain_table("Validation images, after the last epoch", ("Quantity", "Value"), rows)
    return Section("Training", (), (table,), (training_curves("training", curves),))


def _data_section(inputs: ReportInputs) -> Section:
    splits = plain_table(
        f"Images of {inputs.dataset}",
        ("Split", "images", "exact duplicates", "mean", "standard deviation"),
        (
            (
                split,
                f"{values['count']:,}",
                f"{values['exact_duplicates']:,}",
                ", ".join(f"{mean:.3f}" for mean in values["mean"]),
                ", ".join(f"{deviation:.3f}" for deviation in values["std"]),
            )
            for split, values in inputs.statistics.items()
        ),
    )
    available = inputs.statistics["test"]["class_counts"]
    classes = plain_table(
        "Test images of each class",
        ("Class", "evaluated", "in the test split"),
        (
            (name, f"{count:,}", f"{available[name]:,}")
            for name, count in inputs.class_counts.items()
        ),
    )
    return Section("Data", (), (splits, classes))


def _provenance_section(inputs: ReportInputs) -> Section:
    stages = plain_table(
        "Stages",
        ("Stage", "fingerprint", "seed", "started (UTC)", "seconds"),
        (
            (m.stage, m.fingerprint[:16], m.seed, m.started, f"{m.wall_seconds:,.1f}")
            for m in inputs.manifests
        ),
    )
    versions = {
        (package, version): None
        for manifest in inputs.manifests
        for package, version in manifest.package_versions.items()
    }
    packages = plain_table("Packages", ("Package", "version"), versions)
    settings = plain_table(
        "Settings",
        ("Setting", "value"),
        (
            (f"{manifest.stage}: {section}.{name}", json.dumps(value))
            for manifest in inputs.manifests
            for section, values in manifest.config.items()
            for name, value in values.items()
        ),
    )
    return Section("Provenance", (), (stages, packages, settings))
