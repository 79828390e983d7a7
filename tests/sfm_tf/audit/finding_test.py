import dataclasses

import pytest

from sfm_tf.audit.evidence import Evidence
from sfm_tf.audit.finding import Finding, Judgement, Rule, find, grade, worst
from sfm_tf.evaluation.metrics import Metrics
from sfm_tf.evaluation.settings import EvaluationConfig
from tests import made_up


def _empty_evidence():
    return Evidence(
        metrics=Metrics(subject="sfm", clean=()),
        results=made_up.answers("", "", "", 0.0, [], [], []),
        probes=None,
        config=EvaluationConfig(),
        class_counts={},
    )


def test_a_finding_says_what_its_rule_asked_and_saw():
    evidence, seen = _empty_evidence(), []

    def judge(found):
        seen.append(found)
        return Judgement("warn", "7 of 9.")

    rule = Rule("name", "Title", judge, "Because.", "Someone 2020", True)
    finding = find(rule, evidence)
    assert finding == Finding("name", "Title", "warn", "7 of 9.", "Because.", "Someone 2020", True)
    assert seen == [evidence]
    assert [field.name for field in dataclasses.fields(Finding)][0] == "rule"


@pytest.mark.parametrize(
    ("count", "examples", "status"),
    [
        (0, 100, "pass"),
        (-3, 100, "pass"),
        (2, 100, "pass"),
        (4, 100, "pass"),
        (5, 100, "warn"),
        (5.5, 100, "fail"),
        (1, 12, "pass"),
        (2, 12, "warn"),
        (3, 12, "fail"),
        (28, 1000, "pass"),
        (29, 1000, "warn"),
        (50, 1000, "warn"),
        (51, 1000, "fail"),
    ],
)
def test_few_images_pass_and_many_fail(count, examples, status):
    assert grade(count, examples) == status


def test_a_rule_can_ask_for_other_shares():
    assert grade(15, 100, 0.1, 0.2) == "pass"
    assert grade(16, 100, 0.1, 0.2) == "warn"
    assert grade(20, 100, 0.1, 0.2) == "warn"
    assert grade(21, 100, 0.1, 0.2) == "fail"


def test_the_worst_status_counts():
    assert worst(["pass", "fail", "warn"]) == "fail"
    assert worst(["pass", "not_run"]) == "not_run"
    assert worst([]) == "pass"
