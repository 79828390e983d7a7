"""The audit as a file beside the evaluation."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.audit.finding import Finding
from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.errors import SfmError

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
