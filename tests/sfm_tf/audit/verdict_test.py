import json

import pytest

from sfm_tf.audit.finding import Finding
from sfm_tf.audit.verdict import (
    AUDIT_FILE,
    RULE_TEXT,
    open_points,
    read_audit,
    tally,
    verdict,
    write_audit,
)
from sfm_tf.errors import SfmError
from tests.made_up import finding

GOOD = (finding("pass", True), finding("pass", False))


@pytest.mark.parametrize(
    ("findings", "level"),
    [
        ((), "credible"),
        ((finding("warn", False),), "credible"),
        ((finding("not_run", False),), "credible"),
        ((finding("fail", False),), "incomplete"),
        ((finding("warn", True),), "incomplete"),
        ((finding("not_run", True),), "incomplete"),
        ((finding("fail", True),), "not_credible"),
        ((finding("fail", True), finding("not_run", True)), "not_credible"),
    ],
)
def test_the_worst_finding_that_counts_decides(findings, level):
    found = verdict([*GOOD, *findings])
    assert (found.level, found.rule_text) == (level, RULE_TEXT)


def test_the_sentence_names_what_decided():
    failed, warned = finding("fail", True, "Gradients reach"), finding("warn", True, "Noise")
    assert verdict([*GOOD, failed, warned]).sentence == (
        "1 of 3 required checks failed: Gradients reach (failed)."
    )
    assert verdict([*GOOD, warned, finding("warn", False), finding("not_run", False)]).sentence == (
        "2 of 5 checks passed; 2 warnings, 1 not run. To look at: Noise (warning)."
    )
    assert verdict(GOOD).sentence == "All 1 required checks passed."


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        (["pass"] * 24 + ["warn"] * 4, "24 passed · 4 warnings"),
        (["warn", "pass", "not_run", "fail"], "1 passed · 1 warning · 1 failed · 1 not run"),
        (["pass"], "1 passed"),
    ],
)
def test_checks_are_counted_in_words(statuses, words):
    assert tally([finding(status, False) for status in statuses]) == words


def test_what_did_not_pass_is_a_line_each_and_what_was_not_run_one_line():
    findings = [
        finding("warn", False, "Noise"),
        *GOOD,
        finding("not_run", True, "Draws"),
        finding("fail", True, "Growth"),
        finding("not_run", False, "Goals"),
    ]
    assert list(open_points(findings)) == [
        'Failed check "Growth": 3 of 9 images.',
        'Warning from check "Noise": 3 of 9 images.',
        "Not run: Draws; Goals.",
    ]


FINDINGS = (
    Finding("noise", "Noise is weak", "pass", "0 of 9.", "Because.", "Someone 2019", True),
    Finding("draws", "Draws repeated", "not_run", "None.", "Luck.", "Tramèr 2020", False),
)


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / AUDIT_FILE
    write_audit(path, FINDINGS, verdict(FINDINGS))
    assert read_audit(path) == (FINDINGS, verdict(FINDINGS))
    value = json.loads(path.read_text(encoding="utf-8"))
    assert (value["schema_version"], value["verdict"]["level"]) == (1, "credible")
    assert [finding["status"] for finding in value["findings"]] == ["pass", "not_run"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1, "findings": []}'])
def test_a_damaged_file_is_refused(tmp_path, text):
    path = tmp_path / AUDIT_FILE
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SfmError, match=r"^Cannot read audit .*; run the evaluation again\.$"):
        read_audit(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SfmError, match="^Cannot read audit "):
        read_audit(tmp_path / AUDIT_FILE)


def test_another_version_is_refused(tmp_path):
    path = tmp_path / AUDIT_FILE
    path.write_text('{"schema_version": 2}', encoding="utf-8")
    with pytest.raises(SfmError, match=r"has schema_version 2; expected 1\. Run the"):
        read_audit(path)
