"""Whether an evaluation can be believed, from what the rules found."""

import dataclasses
from collections.abc import Iterable
from typing import Literal

from sfm_tf.audit.finding import Finding

Level = Literal["credible", "incomplete", "not_credible"]
"""How far an evaluation can be believed."""

RULE_TEXT = (
    "Not credible: a check that must pass failed. Incomplete: a check that must pass was not run "
    "or leaves a doubt, or another check failed. Credible: none of these. A credible evaluation is "
    "one without a known flaw, not a proof: a stronger attack may yet be found."
)
"""The rule in words, for reports."""


@dataclasses.dataclass(frozen=True)
class AuditVerdict:
    """The audit in short.

    Attributes:
        level: How far the evaluation can be believed.
        sentence: Why, in one sentence.
        rule_text: By which rule.
    """

    level: Level
    sentence: str
    rule_text: str = RULE_TEXT


def verdict(findings: Iterable[Finding]) -> AuditVerdict:
    """Returns how far an evaluation with these findings can be believed."""
    found = tuple(findings)
    failed = [finding for finding in found if finding.is_must and finding.status == "fail"]
    doubtful = [
        finding
        for finding in found
        if finding.status == "fail" or (finding.is_must and finding.status in ("warn", "not_run"))
    ]
    musts = sum(finding.is_must for finding in found)
    if failed:
        return AuditVerdict(
            "not_credible",
            f"{len(failed)} of {musts} checks that must pass failed: {_told(failed)}.",
        )
    if doubtful:
        return AuditVerdict(
            "incomplete",
            f"{len(doubtful)} of {len(found)} checks leave a doubt: {_told(doubtful)}.",
        )
    return AuditVerdict("credible", f"All {musts} checks that must pass did.")


def _told(findings: list[Finding]) -> str:
    words = {"fail": "failed", "warn": "warning", "not_run": "not run"}
    return "; ".join(f"{finding.title} ({words[finding.status]})" for finding in findings)
