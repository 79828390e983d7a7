"""The sections of a report, in their order; every document shows the same ones."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sfm_tf.audit.finding import Finding
from sfm_tf.evaluation.metrics import Accuracy
from sfm_tf.evaluation.paired_answers import ALL_THREATS, against_subject
from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.report.charts import (
    ReportFigure,
    accuracy_chart,
    accuracy_point,
    class_chart,
    confusion_map,
    epsilon_curves,
    ladder_curve,
    loss_curve,
    roc_chart,
    success_curve,
    training_curves,
    tuning_curves,
)
from sfm_tf.report.example_images import (
    ablation_gallery,
    defence_gallery,
    failure_gallery,
    failure_table,
    mask_table,
    perceived_gallery,
    perturbation_gallery,
)
from sfm_tf.report.first_screen import audit_sentence
from sfm_tf.report.inputs import Audit, Gallery, ReportInputs
from sfm_tf.report.paper import CAVEAT, MISPRINT, comparison_tables, cost_table
from sfm_tf.report.statements import (
    THREAT_MODEL_NAMES,
    condition_name,
    precision_statement,
    shown_threat_models,
    threat_model_statement,
)
from sfm_tf.report.tables import (
    Cell,
    Row,
    Table,
    ablation_table,
    accuracy_cell,
    accuracy_entries,
    accuracy_table,
    attack_name,
    class_count_table,
    defence_name,
    defences,
    detection_table,
    minimum_norm_table,
    operating_point_table,
    package_table,
    plain_table,
    worst_case_table,
)
from sfm_tf.tuning.ablations import COMPLETE


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


_WORST_CASE_NOTE = (
    "An image counts as right only if the model is right on it without an attack and after every "
    "attack of the column. The attack that broke the most images is named in each cell."
)


def build_sections(inputs: ReportInputs) -> tuple[Section, ...]:
    """Returns the sections of a report."""
    return tuple(_sections(inputs))


def _sections(inputs: ReportInputs) -> Iterator[Section]:
    threat_models = shown_threat_models(inputs.evaluation)
    worst = worst_case_table(inputs.metrics, threat_models)
    yield Section("Worst case", (_WORST_CASE_NOTE,), (worst,))
    yield audit_section(inputs.audit)
    for threat_model, name in threat_models.items():
        yield threat_model_section(inputs, threat_model, name)
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
        yield detection_section(inputs.detection, threat_models)
    yield cost_section(inputs)
    if inputs.gallery is not None:
        yield defence_section(inputs, inputs.gallery)
    if inputs.history:
        yield training_section(inputs.history, inputs.tuning)
    if inputs.commands:
        yield commands_section(inputs)
    yield data_section(inputs)
    yield provenance_section(inputs)


_AUDIT_COLUMNS = ("Check", "result", "figure", "why", "source")


def audit_section(audit: Audit | None) -> Section:
    """Returns the verdict on the evaluation, its rule, and what each check found."""
    if audit is None:
        return Section("Audit", (audit_sentence(None),))
    verdict = audit.verdict
    passed = [finding for finding in audit.findings if finding.status == "pass"]
    others = [finding for finding in audit.findings if finding.status != "pass"]
    parts = (
        ("Checks that did not pass, with their reasons", others, False),
        (f"Checks that passed: {len(passed)}", passed, True),
    )
    tables = tuple(
        Table(title, _AUDIT_COLUMNS, tuple(map(_finding_row, findings)), is_folded)
        for title, findings, is_folded in parts
        if findings
    )
    paragraphs = (audit_sentence(audit), verdict.sentence, f"The rule: {verdict.rule_text}")
    return Section("Audit", paragraphs, tables)


def _finding_row(finding: Finding) -> Row:
    status = Cell(finding.status.replace("_", " "), remark="must pass" if finding.is_must else "")
    return Row(finding.title, (status, *map(Cell, (finding.figure, finding.why, finding.source))))


def threat_model_section(inputs: ReportInputs, threat_model: str, name: str) -> Section:
    """Returns the accuracies under one threat model.

    Args:
        inputs: What the report shows.
        threat_model: Value of a `ThreatModel`.
        name: The same in words.
    """
    title, config, metrics = name.capitalize(), inputs.evaluation, inputs.metrics
    figures = []
    if any(entry.threat_model == threat_model for entry in metrics.under_attack):
        points = [
            accuracy_point(label, column, entry)
            for defence, label in defences(metrics)
            for column, entry in accuracy_entries(
                metrics, defence, threat_model, config.epsilons
            ).items()
        ]
        figures.append(accuracy_chart(f"accuracy_{threat_model}", title, points))
    figures += [
        perturbation_gallery(
            f"perturbation_{threat_model}_{shown.attack}_{shown.epsilon:g}",
            f"{title}, {attack_name(shown.attack)}",
            shown,
        )
        for shown in inputs.perturbations
        if shown.threat_model == threat_model
    ]
    table = accuracy_table(
        metrics, threat_model, f"{title}: accuracy and 95% interval", config.epsilons
    )
    smallest = minimum_norm_table(metrics, threat_model)
    statement = (
        *threat_model_statement(threat_model, config),
        *precision_statement(metrics, threat_model, config),
    )
    return Section(
        title, statement, (table,) if smallest is None else (table, smallest), tuple(figures)
    )


def strength_section(inputs: ReportInputs, threat_models: Mapping[str, str]) -> Section:
    """Returns how accuracy moves with the radius, and loss and success with the steps.

    Args:
        inputs: What the report shows.
        threat_models: Names of the threat models in words.
    """
    probes = inputs.probes
    ladder, curve = (probes.ladder, probes.curve) if probes else ((), ())
    curves = {
        "No attack at a radius was run, so there is no curve against the radius.": epsilon_curves(
            "accuracy_epsilon", inputs.metrics, threat_models
        ),
        "PGD was not run at radii beyond those evaluated.": ladder_curve("accuracy_ladder", ladder),
        "The loss along the steps of PGD was not measured.": loss_curve("loss_steps", curve),
        "The success along the steps of PGD was not measured.": success_curve(
            "success_steps", curve, probes.settings.examples if probes else 0
        ),
    }
    return Section(
        "Radius, steps and loss",
        tuple(sentence for sentence, figure in curves.items() if figure is None),
        figures=tuple(figure for figure in curves.values() if figure is not None),
    )


_SIGNIFICANCE = 0.05
"""Corrected p-value below which the report calls a difference one."""

_PAIRED_NOTE = (
    "The exact McNemar test counts the images that only one of two defences is right on. p is the "
    "chance of a split at least as uneven if neither were better; Holm's correction is for all "
    "rows of this table. Overlapping intervals do not decide this. The test covers the choice of "
    "images, not another training."
)


def paired_section(inputs: ReportInputs, threat_models: Mapping[str, str]) -> Section:
    """Returns how the subject differs from each other defence on the same images.

    Args:
        inputs: What the report shows.
        threat_models: Names of the threat models in words.
    """
    title, subject = "Differences between defences", inputs.metrics.subject
    listed = against_subject(inputs.paired, subject)
    if not listed:
        sentence = "No two defences were attacked on the same images, so none is compared."
        return Section(title, (sentence,))
    own = defence_name(subject)
    columns = (
        f"{own} and",
        "images",
        f"only {own} right",
        "only the other right",
        "p",
        "p after Holm",
        "more often right",
    )
    rows = (_paired_row(entry, own, threat_models) for entry in listed)
    table = plain_table("Differences between defences, on the same images", columns, rows)
    return Section(title, (_PAIRED_NOTE,), (table,))


def _paired_row(
    entry: Mapping[str, Any], own: str, threat_models: Mapping[str, str]
) -> tuple[str, ...]:
    other, threat_model = defence_name(entry["other"]), entry["threat_model"]
    attackers = (
        "all threat models and radii"
        if threat_model == ALL_THREATS
        else f"{threat_models[threat_model]} {entry['epsilon']:g}/255"
    )
    first, second = entry["only_first_right"], entry["only_second_right"]
    better = own if first > second else other
    return (
        f"{other}, {attackers}",
        *(f"{count:,}" for count in (entry["examples"], first, second)),
        *(f"{entry[name]:.3g}" for name in ("p_value", "holm_p_value")),
        better if entry["holm_p_value"] < _SIGNIFICANCE else "not shown",
    )


def class_section(inputs: ReportInputs, threat_models: Mapping[str, str]) -> Section:
    """Returns the accuracies of each class, and what its images are taken for under attack.

    Args:
        inputs: What the report shows.
        threat_models: Names of the threat models in words.
    """
    title = "Classes"
    if inputs.breakdown is None:
        sentence = "The results of single images are not stored, so there are no figures by class."
        return Section(title, (sentence,))
    classes, confusion = inputs.breakdown["per_class"], inputs.breakdown["confusion"]
    accuracies = (
        (e["class"], *(e[key] and Accuracy(**e[key]) for key in ("clean", "worst_case")))
        for e in classes
    )
    table = plain_table(
        "Accuracy of each class and 95% interval",
        ("Class", "clean", "worst case over all threat models and radii"),
        ((name, *map(accuracy_cell, entries)) for name, *entries in accuracies),
    )
    chart = class_chart("classes", classes)
    if confusion is None:
        sentence = "No attack at a radius was run, so there is no table of mistaken classes."
        return Section(title, (sentence,), (table,), (chart,))
    names = [entry["class"] for entry in classes]
    confused = confusion_map("confusion", confusion, names, threat_models)
    return Section(title, (), (table,), (chart, confused))


def failure_section(inputs: ReportInputs, threat_models: Mapping[str, str]) -> Section:
    """Returns the images that the smallest perturbations turned wrong.

    Args:
        inputs: What the report shows.
        threat_models: Names of the threat models in words.
    """
    title, gallery = "Worst failures", inputs.failures
    if gallery is None:
        sentence = "The results of single images are not stored, so no failure is shown."
        return Section(title, (sentence,))
    if not gallery.failures:
        return Section(title, ("No attack at a radius broke an image.",))
    table = failure_table(gallery.failures, threat_models, inputs.evaluation.norm)
    return Section(title, (), (table,), (failure_gallery("failures", gallery),))


_DETECTION_NOTE = (
    "The detector of Xu et al. 2018 flags an image if squeezing it moves the softmax of the bare "
    "classifier by more than a threshold in L1, chosen on validation images. An attack is "
    "successful on an image if the model is right without it and wrong after it. Attackers do not "
    "know the detector, except for squeezing-aware PGD, which knows the threshold too."
)


def detection_section(detection: Mapping[str, Any], threat_models: Mapping[str, str]) -> Section:
    """Returns what the detector flags.

    Args:
        detection: What `sfm_tf.audit.detection.detection_summary` returned.
        threat_models: Names of the threat models in words.
    """
    names = {**threat_models, ThreatModel.ADAPTIVE.value: "aware of the detector"}
    title = "Flagged adversarial images of the bare classifier, and 95% interval"
    figure = roc_chart("detection", detection, names)
    return Section(
        "Detection by feature squeezing",
        (_DETECTION_NOTE,),
        (operating_point_table(detection), detection_table(detection, names, title)),
        () if figure is None else (figure,),
    )


_COST_NOTE = (
    "The models took turns in one process on one batch of the test images. Times are of that "
    "machine; the ratios to the undefended classifier hold on others too."
)


def cost_section(inputs: ReportInputs) -> Section:
    """Returns what each defence costs."""
    costs = cost_table(inputs.dataset, inputs.costs, inputs.training_seconds)
    if costs is None:
        return Section("Cost", ("The cost of the defences was not measured.",))
    return Section("Cost", (_COST_NOTE,), (costs,))


_NO_ATTACK = (
    "No white-box or gray-box images of the defended model are stored, so what the classifier sees "
    "of a perturbation (Figure 1 of the paper) is not shown."
)
_NO_MASKS = "The masks of the evaluated images were not measured."
_NO_ABLATION = (
    "No training without one of the losses was run, so Figure 5 of the paper has no counterpart."
)


def defence_section(inputs: ReportInputs, gallery: Gallery) -> Section:
    """Returns what masks and pre-processing do, as Figures 1, 4 and 5 of the paper show it.

    Args:
        inputs: What the report shows.
        gallery: Its gallery, which is not None.
    """
    figures = [defence_gallery("defence", gallery)]
    if inputs.perceived is not None:
        shown = inputs.perceived.attacked
        attack = f"{attack_name(shown.attack)}, {THREAT_MODEL_NAMES[shown.threat_model]}"
        figures.insert(
            0, perceived_gallery("perceived", attack, inputs.perceived, inputs.evaluation.norm)
        )
    lacking = {words: each for words, each in inputs.ablations.items() if words != COMPLETE}
    if lacking:
        complete = inputs.ablations.get(COMPLETE, gallery)
        figures.append(ablation_gallery("ablations", complete, lacking))
    missing = {
        _NO_ATTACK: inputs.perceived is None,
        _NO_MASKS: inputs.masks is None,
        _NO_ABLATION: not lacking,
    }
    return Section(
        "What the defence does",
        tuple(sentence for sentence, is_missing in missing.items() if is_missing),
        (
            *(() if inputs.masks is None else (mask_table(inputs.masks),)),
            *((ablation_table(inputs.ablation_scores),) if inputs.ablation_scores else ()),
        ),
        tuple(figures),
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

_NO_TUNING = (
    "No tuning was run, so there is no accuracy against the weight of the sparsity loss (Figure 3 "
    "of the paper)."
)


def training_section(
    history: Mapping[str, Sequence[Mapping[str, Any]]],
    tuning: Sequence[Mapping[str, Any]] | None = None,
) -> Section:
    """Returns how the losses went, and accuracy against the weight of the sparsity loss.

    Args:
        history: For `defence`, per epoch its `training` and `validation`.
        tuning: As `sfm_tf.report.inputs.ReportInputs` has it.
    """
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
    table = plain_table("Validation images, after the last epoch", ("Quantity", "value"), rows)
    tuned = (tuning_curves("tuning", tuning),) if tuning else ()
    return Section(
        "Training",
        tuple(_tuning_remarks(tuning)) if tuning else (_NO_TUNING,),
        (table,),
        (training_curves("training", curves), *tuned),
    )


def _tuning_remarks(tuning: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields what the figure of a tuning does not show, as far as it is known."""
    measured = tuning[0]
    if "examples" in measured and "epsilon" in measured:
        yield (
            f"Trials of the tuning were scored on {measured['examples']:,} validation images, "
            f"under PGD at {measured['epsilon']:g}/255 in L∞."
        )
    weights = [f"{trial['sparsity_weight']:g}" for trial in tuning if trial.get("collapse")]
    if weights:
        yield f"The mask collapsed in the trials with w₁ = {', '.join(weights)}."


_COMMAND_NOTE = (
    "Each command measures the figures of one row again, for all defences, with the settings of "
    "this evaluation. WORKDIR and other words in capitals stand for places of your own. Add "
    "--audit_examples=0 to leave out the audit's measurements, which change no accuracy."
)

_DEPENDENT_NOTE = (
    "Here each attack ran only on what the attacks before it had left, so a command runs those too."
)


def commands_section(inputs: ReportInputs) -> Section:
    """Returns a command for each row under attack."""
    rows = ((condition_name(each.condition), each.command) for each in inputs.commands)
    table = plain_table("Commands", ("Accuracy", "command"), rows)
    is_dependent = inputs.evaluation.robust_accuracy_only
    notes = (_COMMAND_NOTE, _DEPENDENT_NOTE) if is_dependent else (_COMMAND_NOTE,)
    return Section("How to run a row again", notes, (table,))


def data_section(inputs: ReportInputs) -> Section:
    """Returns what the images are and how many of each class were evaluated."""
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
    classes = class_count_table(inputs.statistics, inputs.class_counts)
    return Section("Data", (), (splits, classes))


def provenance_section(inputs: ReportInputs) -> Section:
    """Returns the stages with their settings, seeds and versions of packages."""
    stages = plain_table(
        "Stages",
        ("Stage", "fingerprint", "seed", "started (UTC)", "seconds"),
        (
            (m.stage, m.fingerprint[:16], m.seed, m.started, f"{m.wall_seconds:,.1f}")
            for m in inputs.manifests
        ),
    )
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
    return Section("Provenance", (), (stages, package_table(inputs.manifests), settings))
