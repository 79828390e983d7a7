"""Tests of what is reported after each step, and of losses that are no number."""

import math

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.training.step_watch import StepWatch, check_finite


def _watch(reports):
    return StepWatch(
        lambda *report: reports.append(report),
        stage="alternation",
        epoch=3,
        earlier=40,
        total=100,
        validation={"bare_accuracy": 0.9},
    )


def test_reports_steps_of_the_stage_with_measured_and_validation_figures():
    reports = []
    watch = _watch(reports)
    watch.add(5, {"mask_loss": 2.0, "mask_mean": 0.5})
    watch.finish()
    figures = {"mask_loss": 2.0, "mask_mean": 0.5, "bare_accuracy": 0.9}
    assert reports == [("alternation", 45, 100, figures)]


def test_looks_at_steps_late_but_in_order_and_at_all_of_them():
    reports = []
    watch = _watch(reports)
    for step in range(1, 11):
        watch.add(step, {"mask_loss": float(step)})
    assert [report[1] for report in reports] == [41, 42, 43, 44, 45, 46]
    watch.finish()
    assert [report[1] for report in reports] == list(range(41, 51))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_no_number_stops_naming_loss_step_and_epoch(value):
    reports = []
    watch = _watch(reports)
    message = f"mask_loss became {value} in step 5 of epoch 3 of alternation; lower masker_learning"
    watch.add(4, {"mask_loss": 1.0})
    watch.add(5, {"mask_loss": value})
    watch.add(6, {"mask_loss": value})
    with pytest.raises(SfmError, match=message):
        watch.finish()
    assert [report[1] for report in reports] == [44]


def test_classification_loss_names_its_own_remedy():
    with pytest.raises(SfmError, match=r"the validation; lower classifier_learning_rate, or set"):
        check_finite({"classification_loss": math.nan}, "the validation")


def test_finite_losses_pass():
    check_finite({"classification_loss": 1.0, "mask_loss": 0.0}, "the validation")


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
