import dataclasses

import pytest

from sfm_tf import testing
from sfm_tf.audit.finding import Finding
from sfm_tf.audit.verdict import RULE_TEXT, AuditVerdict
from sfm_tf.report.reliability_sections import audit_section, paired_section, strength_section
from sfm_tf.report.report_inputs import Audit

INPUTS = testing.made_up_inputs()
NAMES = {"white_box": "white box"}


def _finding(status, is_must=True):
    return Finding(
        "name", f"Title {status}", status, "3 of 9 images.", "It matters.", "Who", is_must
    )


def test_the_audit_shows_verdict_rule_and_every_check():
    findings = [_finding("pass"), _finding("warn", False), _finding("fail"), _finding("not_run")]
    section = audit_section(Audit(findings, AuditVerdict("not_credible", "1 check failed.")))
    assert section.paragraphs == (
        "Not credible. 1 check failed.",
        f"The rule: {RULE_TEXT}",
        "Of 4 checks: 1 pass, 1 warn, 1 fail, 1 not run.",
    )
    (table,) = section.tables
    assert table.columns == ("Rule", "status", "figure", "why", "source")
    assert [(row.label, str(row.cells[0])) for row in table.rows] == [
        ("Title pass", "pass, must pass"),
        ("Title warn", "warn"),
        ("Title fail", "fail, must pass"),
        ("Title not_run", "not run, must pass"),
    ]
    assert [str(cell) for cell in table.rows[0].cells[1:]] == [
        "3 of 9 images.",
        "It matters.",
        "Who",
    ]


@pytest.mark.parametrize("level", ["credible", "incomplete"])
def test_each_level_has_its_word(level):
    section = audit_section(Audit([], AuditVerdict(level, "So.")))
    assert section.paragraphs[0] == f"{level.capitalize()}. So."
    assert section.tables == ()


def test_no_audit_is_said():
    (sentence,) = audit_section(None).paragraphs
    assert sentence.startswith("No audit is stored")


def test_what_was_not_probed_is_said():
    section = strength_section(INPUTS, NAMES)
    assert len(section.paragraphs) == 3
    assert section.figures == ()


def test_a_partial_probe_shows_what_there_is():
    ladder = [{"epsilon": 8.0, "examples": 4, "correct": 3}]
    inputs = dataclasses.replace(INPUTS, probes={"ladder": ladder})
    section = strength_section(inputs, NAMES)
    assert [figure.name for figure in section.figures] == ["accuracy_ladder"]
    assert len(section.paragraphs) == 2


def _pair(other, first, second, p_value, holm_p_value, **keys):
    return {
        "threat_model": "white_box",
        "attack": "worst_case",
        "epsilon": 8.0,
        "defence": "sfm",
        "other": other,
        "examples": 100,
        "only_first_right": first,
        "only_second_right": second,
        "p_value": p_value,
        "holm_p_value": holm_p_value,
        **keys,
    }


def test_pairs_name_a_better_defence_only_where_the_corrected_test_does():
    paired = [
        _pair("tvm", 20, 2, 0.0001, 0.0004),
        _pair("jpeg", 2, 20, 0.0001, 0.0004),
        _pair("undefended", 9, 2, 0.03, 0.06),
        _pair("quilting", 5, 5, 1.0, 1.0, threat_model="all", epsilon=None),
        _pair("tvm", 30, 2, 0.0, None, attack="pgd"),
        _pair("tvm", 30, 2, 0.0, None, epsilon=4.0),
        _pair("jpeg", 30, 2, 0.0, None, defence="tvm"),
    ]
    section = paired_section(dataclasses.replace(INPUTS, paired=paired), NAMES)
    (table,) = section.tables
    assert [(row.label, *map(str, row.cells)) for row in table.rows] == [
        ("TVM, white box 8/255", "100", "20", "2", "0.0001", "0.0004", "SFM-Defence"),
        ("JPEG, white box 8/255", "100", "2", "20", "0.0001", "0.0004", "JPEG"),
        ("no defence, white box 8/255", "100", "9", "2", "0.03", "0.06", "not shown"),
        ("quilting, all threat models and radii", "100", "5", "5", "1", "1", "not shown"),
    ]


def test_a_defence_alone_is_compared_with_none():
    section = paired_section(INPUTS, NAMES)
    assert section.tables == ()
    assert section.paragraphs[0].endswith("so none is compared.")


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
