"""Whether an evaluation can be believed, from what the rules found."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.audit.finding import Finding, Status
from sfm_tf.errors import SfmError

Level = Literal["credible", "incomplete", "not_credible"]
"""How far an evaluation can be believed."""

RULE_TEXT = (
    "Not credible: a required check failed. Incomplete: a required check gave a warning or was not "
    "run, or another check failed. Credible: none of these. A credible evaluation has no known "
    "flaw; that is no proof, because a stronger attack may yet be found."
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
    required = sum(finding.is_must for finding in found)
    if failed:
        sentence = f"{len(failed)} of {required} required checks failed: {_titles(failed)}."
        return AuditVerdict("not_credible", sentence)
    if doubtful:
        return AuditVerdict("incomplete", f"{_passed(found)}. To look at: {_titles(doubtful)}.")
    return AuditVerdict("credible", f"All {required} required checks passed.")


_WORDS: Mapping[Status, tuple[str, str]] = {
    "pass": ("passed", "passed"),
    "warn": ("warning", "warnings"),
    "fail": ("failed", "failed"),
    "not_run": ("not run", "not run"),
}
"""How one check came out, and how several did."""


def tally(findings: Iterable[Finding]) -> str:
    """Returns how the checks came out in a few words, such as `24 passed · 4 warnings`."""
    return " · ".join(_counts(findings).values())


def open_points(findings: Iterable[Finding]) -> Iterator[str]:
    """Yields a line for each check that failed or gave a warning, and one for those not run."""
    listed = tuple(findings)
    for status, opening in (("fail", "Failed check"), ("warn", "Warning from check")):
        for finding in listed:
            if finding.status == status:
                yield f'{opening} "{finding.title}": {finding.figure}'
    left_out = [finding.title for finding in listed if finding.status == "not_run"]
    if left_out:
        yield f"Not run: {'; '.join(left_out)}."


def _passed(findings: Sequence[Finding]) -> str:
    """Returns the same as the beginning of a sentence."""
    counts = _counts(findings)
    passed = counts.pop("pass", "0 passed").removesuffix(" passed")
    return f"{passed} of {len(findings)} checks passed; {', '.join(counts.values())}"


def _counts(findings: Iterable[Finding]) -> dict[Status, str]:
    counts = collections.Counter(finding.status for finding in findings)
    return {
        status: f"{counts[status]} {words[counts[status] > 1]}"
        for status, words in _WORDS.items()
        if counts[status]
    }


def _titles(findings: Iterable[Finding]) -> str:
    return "; ".join(f"{finding.title} ({_WORDS[finding.status][0]})" for finding in findings)


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
