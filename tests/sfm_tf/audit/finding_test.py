import dataclasses

import pytest

from sfm_tf.audit.evidence import Evidence
from sfm_tf.audit.finding import Finding, Judgement, Rule, find
from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.results import results_rows


def _empty_evidence():
    columns = dict.fromkeys(("label", "prediction", "clean_prediction", "iterations"), 0)
    numbers = dict.fromkeys(("epsilon", "linf", "l2", "loss"), 0.0)
    words = dict.fromkeys(("defence", "threat_model", "attack"), "")
    return Evidence(
        metrics={},
        results=results_rows(0, {**columns, **numbers, **words, "zero_gradient": False}),
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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
