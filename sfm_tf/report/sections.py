"""The sections of a report, in their order; every document shows the same ones."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sfm_tf.evaluation.paired_answers import ALL_THREATS, against_subject
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.report.comparison_sections import condition_name
from sfm_tf.report.example_images import (
    ablation_gallery,
    failure_gallery,
    failure_table,
    mask_table,
    perceived_gallery,
)
from sfm_tf.report.figures import (
    Bar,
    ReportFigure,
    accuracy_chart,
    class_chart,
    confusion_map,
    defence_gallery,
    epsilon_curves,
    ladder_curve,
    loss_curves,
    perturbation_gallery,
    roc_figure,
    training_curves,
    tuning_curves,
)
from sfm_tf.report.paper import CAVEAT, MISPRINT, comparison_tables, cost_table
from sfm_tf.report.report_inputs import Audit, Gallery, ReportInputs
from sfm_tf.report.section import Section
from sfm_tf.report.statements import (
    THREAT_MODEL_NAMES,
    precision_statement,
    shown_threat_models,
    threat_model_statement,
)
from sfm_tf.report.tables import (
    DEFENCE_NAMES,
    Cell,
    Row,
    Table,
    ablation_table,
    accuracy_cell,
    accuracy_entries,
    accuracy_table,
    attack_name,
    defences,
    detection_table,
    find_entry,
    minimum_norm_table,
    operating_point_table,
    plain_table,
    worst_case_table,
)
from sfm_tf.tuning.ablations import COMPLETE

_COLUMNS = ("clean", "worst_case")


def class_section(inputs: ReportInputs, threat_models: Mapping[str, str]) -> Section:
    """Returns the accuracies of each class, and what its images are taken for under attack.

    Args:
        inputs: What the report shows.
        threat_models: Names of the threat models in words.
    """
    title = "Classes"
    if inputs.breakdown is None:
        return Section(
            title, ("The results of single images are not stored, so no class is told apart.",)
        )
    classes, confusion = inputs.breakdown["per_class"], inputs.breakdown["confusion"]
    rows = tuple(
        Row(entry["class"], tuple(accuracy_cell(entry[key]) for key in _COLUMNS))
        for entry in classes
    )
    table = Table(
        "Accuracy of each class and 95% interval",
        ("Class", "clean", "worst case over all threat models and radii"),
        rows,
    )
    chart = class_chart("classes", classes)
    if confusion is None:
        sentence = "No attack at a radius was run, so no images were mistaken under one."
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
        return Section(
            title, ("The results of single images are not stored, so no failure is shown.",)
        )
    if not gallery.failures:
        return Section(
            title, ("No attack at a radius turned an image wrong that was right before.",)
        )
    table = failure_table(gallery.failures, threat_models, inputs.evaluation.norm)
    return Section(title, (), (table,), (failure_gallery("failures", gallery),))


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
    arrays = (getattr(gallery, field.name) for field in dataclasses.fields(gallery))
    figures = [_perceived(inputs), defence_gallery("defence", *arrays)]
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
        tuple(figure for figure in figures if figure is not None),
    )


def _perceived(inputs: ReportInputs) -> ReportFigure | None:
    if inputs.perceived is None:
        return None
    attacked = inputs.perceived.attacked
    attack = f"{attack_name(attacked.attack)}, {THREAT_MODEL_NAMES[attacked.threat_model]}"
    return perceived_gallery("perceived", attack, inputs.perceived, inputs.evaluation.norm)


_COMMAND_NOTE = (
    "Each command measures the figures of one row again, those of all its defences; of the "
    "evaluation's settings it changes nothing else. WORKDIR and other words in capitals stand for "
    "places of your own. Setting audit_examples to 0 leaves out the audit's measurements, which "
    "change no accuracy."
)

_DEPENDENT_NOTE = (
    "Here attacks went on only with what those before them had left, so a command runs those too."
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


_LEVELS: Mapping[str, str] = {
    "credible": "Credible.",
    "incomplete": "Incomplete.",
    "not_credible": "Not credible.",
}

_STATUSES: Mapping[str, str] = {
    "pass": "pass",
    "warn": "warn",
    "fail": "fail",
    "not_run": "not run",
}

_SIGNIFICANCE = 0.05
"""Corrected p-value below which the report calls a difference one."""

_PAIRED_NOTE = (
    "The exact McNemar test counts, of the same images, those that only one of two defences is "
    "right on. p is the chance of a split as uneven or more if neither were better; Holm's "
    "correction is for all rows of this table. Intervals that overlap do not decide this, and "
    "the choice of images is all that is tested, not another training."
)


def audit_section(audit: Audit | None) -> Section:
    """Returns the verdict on the evaluation, its rule, and what each check found."""
    if audit is None:
        return Section(
            "Audit",
            ("No audit is stored with this evaluation, so nothing says whether to believe it.",),
        )
    verdict = audit.verdict
    rows = tuple(
        Row(
            finding.title,
            (
                Cell(_STATUSES[finding.status], remark="must pass" if finding.is_must else ""),
                *(Cell(text) for text in (finding.figure, finding.why, finding.source)),
            ),
        )
        for finding in audit.findings
    )
    counts = ", ".join(
        f"{sum(finding.status == status for finding in audit.findings)} {words}"
        for status, words in _STATUSES.items()
    )
    paragraphs = (
        f"{_LEVELS[verdict.level]} {verdict.sentence}",
        f"The rule: {verdict.rule_text}",
        f"Of {len(audit.findings)} checks: {counts}.",
    )
    table = Table("Checks of the evaluation", ("Rule", "status", "figure", "why", "source"), rows)
    return Section("Audit", paragraphs, (table,) if rows else ())


def strength_section(inputs: ReportInputs, threat_models: Mapping[str, str]) -> Section:
    """Returns how accuracy moves with the radius, and loss and success with the steps.

    Args:
        inputs: What the report shows.
        threat_models: Names of the threat models in words.
    """
    probes = inputs.probes or {}
    examples = probes.get("settings", {}).get("examples")
    curves = {
        "No attack at a radius was run, so there is no curve against the radius.": epsilon_curves(
            "accuracy_epsilon", inputs.metrics, threat_models
        ),
        "PGD at radii beyond those evaluated was not run.": ladder_curve(
            "accuracy_ladder", probes.get("ladder", ())
        ),
        "Loss and success along the steps of PGD were not measured.": loss_curves(
            "loss_steps", probes.get("curve", ()), examples
        ),
    }
    return Section(
        "Radius, steps and loss",
        tuple(sentence for sentence, figure in curves.items() if figure is None),
        figures=tuple(figure for figure in curves.values() if figure is not None),
    )


def paired_section(inputs: ReportInputs, threat_models: Mapping[str, str]) -> Section:
    """Returns how the subject differs from each other defence on the same images.

    Args:
        inputs: What the report shows.
        threat_models: Names of the threat models in words.
    """
    subject = inputs.metrics["subject"]
    listed = against_subject(inputs.paired, subject)
    if not listed:
        return Section(
            "Differences between defences",
            ("No two defences were attacked on the same images, so none is compared.",),
        )
    own = DEFENCE_NAMES.get(subject, subject)
    rows = tuple(_paired_row(entry, own, threat_models) for entry in listed)
    columns = (
        f"{own} and",
        "images",
        f"only {own} right",
        "only the other right",
        "p",
        "p after Holm",
        "more often right",
    )
    table = Table("Differences between defences, paired", columns, rows)
    return Section("Differences between defences", (_PAIRED_NOTE,), (table,))


def _paired_row(entry: Mapping[str, Any], own: str, threat_models: Mapping[str, str]) -> Row:
    other = DEFENCE_NAMES.get(entry["other"], entry["other"])
    return Row(
        f"{other}, {_attackers(entry, threat_models)}",
        tuple(Cell(text) for text in _paired_words(entry, own, other)),
    )


def _attackers(entry: Mapping[str, Any], threat_models: Mapping[str, str]) -> str:
    if entry["threat_model"] == ALL_THREATS:
        return "all threat models and radii"
    return f"{threat_models[entry['threat_model']]} {entry['epsilon']:g}/255"


def _paired_words(entry: Mapping[str, Any], own: str, other: str) -> Iterator[str]:
    first, second = entry["only_first_right"], entry["only_second_right"]
    yield from (f"{count:,}" for count in (entry["examples"], first, second))
    yield from (f"{entry[name]:.3g}" for name in ("p_value", "holm_p_value"))
    is_difference = entry["holm_p_value"] < _SIGNIFICANCE
    yield (own if first > second else other) if is_difference else "not shown"


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
        tuning: As `sfm_tf.report.report_inputs.ReportInputs` has it.
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
    table = plain_table("Validation images, after the last epoch", ("Quantity", "Value"), rows)
    tuned = (tuning_curves("tuning", tuning),) if tuning else ()
    return Section(
        "Training",
        tuple(_tuning_remarks(tuning)) if tuned else (_NO_TUNING,),
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
        yield f"The mask collapsed in the trials with w₁ of {', '.join(weights)}."


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
