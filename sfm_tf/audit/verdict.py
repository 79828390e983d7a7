"""Whether an evaluation can be believed, from what the rules found."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Literal

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.audit.finding import Finding
from sfm_tf.errors import SfmError

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


AUDIT_FILE = "audit.json"
SCHEMA_VERSION = 1


def write_audit(path: pathlib.Path, findings: Sequence[Finding], verdict: AuditVerdict) -> None:
    """Writes findings and verdict as JSON, whole or not at all."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "verdict": dataclasses.asdict(verdict),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    write_json(path, value)


def read_audit(path: pathlib.Path) -> tuple[tuple[Finding, ...], AuditVerdict]:
    """Returns what `write_audit` wrote.

    Raises:
        SfmError: If the file is missing, damaged or of another version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version = value["schema_version"]
        if version != SCHEMA_VERSION:
            raise SfmError(
                f"Audit {path} has schema_version {version}; expected {SCHEMA_VERSION}. Run the "
                "evaluation again."
            )
        findings = tuple(Finding(**finding) for finding in value["findings"])
        return findings, AuditVerdict(**value["verdict"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise SfmError(f"Cannot read audit {path} ({error}); run the evaluation again.") from error
