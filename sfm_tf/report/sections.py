"""The sections of a report, in their order; every document shows the same ones."""

from collections.abc import Iterator, Mapping
from typing import Any

from sfm_tf.attacks.threat_models import ThreatModel
from sfm_tf.config import EvaluationConfig
from sfm_tf.report.breakdown_sections import class_section, failure_section
from sfm_tf.report.comparison_tables import comparison_tables, cost_table
from sfm_tf.report.defence_section import defence_section
from sfm_tf.report.detection_figure import roc_figure
from sfm_tf.report.detection_tables import detection_table, operating_point_table
from sfm_tf.report.figures import (
    Bar,
    ReportFigure,
    accuracy_chart,
    perturbation_gallery,
)
from sfm_tf.report.paper import CAVEAT, MISPRINT
from sfm_tf.report.provenance_sections import (
    commands_section,
    data_section,
    provenance_section,
)
from sfm_tf.report.reliability_sections import audit_section, paired_section, strength_section
from sfm_tf.report.report_inputs import ReportInputs
from sfm_tf.report.section import Section
from sfm_tf.report.statements import (
    precision_statement,
    shown_threat_models,
    threat_model_statement,
)
from sfm_tf.report.tables import (
    accuracy_entries,
    accuracy_table,
    attack_name,
    defences,
    find_entry,
    minimum_norm_table,
    worst_case_table,
)
from sfm_tf.report.training_section import training_section

_DETECTION_NOTE = (
    "The detector of Xu et al. 2018 flags an image if squeezing it moves the softmax of the bare "
    "classifier by more than a threshold in L1, chosen on validation images. Successful are images "
    "that were right when clean and are wrong now. Attackers do not know the detector, except for "
    "squeezing-aware PGD, which knows the threshold too."
)

_COST_NOTE = (
    "The models took turns in one process on one batch of the test images. Times are of that "
    "machine; ratios to the undefended classifier carry over."
)


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
    yield audit_section(inputs.audit)
    for threat_model, name in threat_models.items():
        yield _threat_model_section(inputs, threat_model, name)
    yield strength_section(inputs, threat_models)
    yield paired_section(inputs, threat_models)
    yield class_section(inputs, threat_models)
    yield failure_section(inputs, threat_models)
    yield from _context_sections(inputs, threat_models)


def _context_sections(inputs: ReportInputs, threat_models: Mapping[str, str]) -> Iterator[Section]:
    comparisons = tuple(comparison_tables(inputs.dataset, inputs.metrics))
    if comparisons and inputs.evaluation.norm == "inf":
        remarks = (CAVEAT, MISPRINT) if inputs.dataset == "svhn_cropped" else (CAVEAT,)
        yield Section("Beside the paper", remarks, comparisons)
    if inputs.detection is not None:
        yield _detection_section(inputs.detection, threat_models)
    costs = cost_table(inputs.dataset, inputs.costs, inputs.training_seconds)
    if costs is None:
        yield Section("Cost", ("What the defences cost was not measured.",))
    else:
        yield Section("Cost", (_COST_NOTE,), (costs,))
    if inputs.gallery is not None:
        yield defence_section(inputs, inputs.gallery)
    if inputs.history:
        yield training_section(inputs.history, inputs.tuning)
    if inputs.commands:
        yield commands_section(inputs)
    yield data_section(inputs)
    yield provenance_section(inputs)


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


def _detection_section(detection: Mapping[str, Any], threat_models: Mapping[str, str]) -> Section:
    names = {**threat_models, ThreatModel.ADAPTIVE.value: "aware of the detector"}
    title = "Adversarial images of the bare classifier that are flagged, and 95% interval"
    tables = operating_point_table(detection), detection_table(detection, names, title)
    figure = roc_figure("detection", detection, names)
    return Section(
        "Detection by feature squeezing",
        (_DETECTION_NOTE,),
        tables,
        () if figure is None else (figure,),
    )


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
