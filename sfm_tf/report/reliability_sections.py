"""Sections on whether the figures can be believed, and whether the defences differ."""

from collections.abc import Iterator, Mapping
from typing import Any

from sfm_tf.evaluation.metrics import ALL_THREATS
from sfm_tf.evaluation.paired import against_subject
from sfm_tf.report.curve_figures import epsilon_curves, ladder_curve, loss_curves
from sfm_tf.report.report_inputs import Audit, ReportInputs
from sfm_tf.report.section import Section
from sfm_tf.report.tables import DEFENCE_NAMES, Cell, Row, Table

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
