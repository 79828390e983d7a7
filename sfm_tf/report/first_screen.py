"""What a person who must decide reads first: answer, one chart, thresholds and audit."""

import dataclasses

from sfm_tf.audit.blessing import checks, decision_sentence
from sfm_tf.audit.verdict import tally
from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.report.charts import ReportFigure, decision_chart
from sfm_tf.report.inputs import Audit, ReportInputs
from sfm_tf.report.tables import Cell, Row, Table, threshold_table

NO_WHITE_BOX = (
    "The white box was not run, so nothing here shows that the defence holds against an attacker "
    "who knows it."
)


@dataclasses.dataclass(frozen=True)
class FirstScreen:
    """The first screen of a report.

    Attributes:
        is_blessed: Whether the model may be served.
        sentence: The answer in one sentence.
        warning: What a reader must not overlook; may be empty.
        thresholds: What was required and what was measured.
        audit: How the checks of the audit came out, in a few words.
        doubts: The checks that did not pass; None where all did.
        chart: Accuracy against radius; None where nothing was attacked at a radius.
    """

    is_blessed: bool
    sentence: str
    warning: str
    thresholds: Table
    audit: str
    doubts: Table | None
    chart: ReportFigure | None


def first_screen(inputs: ReportInputs) -> FirstScreen:
    """Returns the first screen of a report."""
    audit, metrics = inputs.audit, inputs.metrics
    verdict = None if audit is None else audit.verdict
    has_white_box = metrics.worst(metrics.subject, ThreatModel.WHITE_BOX.value) is not None
    curve = inputs.accuracy_by_radius
    return FirstScreen(
        is_blessed=inputs.blessing.blessed,
        sentence=decision_sentence(metrics, inputs.blessing, verdict),
        warning="" if has_white_box else NO_WHITE_BOX,
        thresholds=threshold_table(checks(metrics, inputs.evaluation, verdict)),
        audit=audit_sentence(audit),
        doubts=None if audit is None else _doubts(audit),
        chart=decision_chart("decision", curve) if any(e.epsilon for e in curve) else None,
    )


def audit_sentence(audit: Audit | None) -> str:
    """Returns how far the audit believes an evaluation, and how its checks came out."""
    if audit is None:
        return "The evaluation was not audited, so nothing says whether to believe it."
    level = audit.verdict.level.replace("_", " ").capitalize()
    return f"{level}: {tally(audit.findings)}." if audit.findings else f"{level}."


def _doubts(audit: Audit) -> Table | None:
    rows = tuple(
        Row(finding.title, (Cell(finding.status.replace("_", " ")), Cell(finding.figure)))
        for finding in audit.findings
        if finding.status != "pass"
    )
    return Table("Checks that did not pass", ("Check", "result", "figure"), rows) if rows else None
