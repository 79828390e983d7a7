import dataclasses

import pytest

from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.evaluation.metrics import Accuracy
from sfm_tf.report.first_screen import NO_WHITE_BOX, first_screen
from sfm_tf.report.inputs import Audit, RadiusAccuracy
from tests import made_up

INPUTS = made_up.inputs()
HALF = made_up.HALF_RIGHT


def attacked(*threat_models: str, defence: str = "sfm"):
    worst = tuple(made_up.worst(name, None, HALF, defence) for name in threat_models)
    metrics = dataclasses.replace(INPUTS.metrics, worst_case=worst)
    return dataclasses.replace(INPUTS, metrics=metrics)


def audited(*statuses: str):
    verdict = AuditVerdict("incomplete", "A sentence.")
    audit = Audit(tuple(map(made_up.finding, statuses)), verdict)
    return dataclasses.replace(attacked("white_box", "all"), audit=audit)


def test_thresholds_stand_with_what_was_measured_and_pass_or_fail():
    found = first_screen(audited("pass")).thresholds
    assert found.columns == ("Threshold", "result", "measured", "required")
    assert made_up.cells(found) == {
        "Clean accuracy": ["pass", "50.0%", "≥ 50.0%"],
        "Worst-case accuracy": ["pass", "50.0%", "≥ 10.0%"],
        "White box": ["pass", "run", "run"],
        "Audit": ["pass", "incomplete", "≥ incomplete"],
    }


def test_the_audit_is_counted_and_what_did_not_pass_is_open():
    found = first_screen(audited("pass", "pass", "warn", "fail"))
    assert found.audit == "Incomplete: 2 passed · 1 warning · 1 failed."
    assert made_up.cells(found.doubts) == {
        "Title warn": ["warn", "3 of 9 images."],
        "Title fail": ["fail", "3 of 9 images."],
    }
    assert first_screen(audited("pass")).doubts is None
    assert first_screen(INPUTS).audit.startswith("The evaluation was not audited")


@pytest.mark.parametrize(
    ("inputs", "warning"),
    [
        (attacked("white_box", "all"), ""),
        (attacked("black_box", "all"), NO_WHITE_BOX),
        # A white box against another defence is none.
        (attacked("white_box", defence="undefended"), NO_WHITE_BOX),
    ],
)
def test_a_missing_white_box_is_told_at_once(inputs, warning):
    assert first_screen(inputs).warning == warning


def test_the_chart_is_there_where_something_was_attacked():
    curve = [
        RadiusAccuracy(defence="sfm", epsilon=epsilon, **dataclasses.asdict(Accuracy(**HALF)))
        for epsilon in (0.0, 8.0)
    ]
    assert first_screen(dataclasses.replace(INPUTS, accuracy_by_radius=curve[:1])).chart is None
    chart = first_screen(dataclasses.replace(INPUTS, accuracy_by_radius=curve)).chart
    assert chart.alternative_text.endswith("SFM-Defence: 50.0% at ε 0, 50.0% at ε 8.")
