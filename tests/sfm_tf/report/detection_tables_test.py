import pytest

from sfm_tf.report import detection_tables
from sfm_tf.report.detection_tables import largest_radii


def flagged(examples: int, count: int, low: float, high: float) -> dict:
    return {
        "examples": examples,
        "flagged": count,
        "rate": count / examples,
        "rate_low": low,
        "rate_high": high,
    }


NOBODY = {"examples": 0, "flagged": 0, "rate": None, "rate_low": None, "rate_high": None}
SUCCESS = {"successful": flagged(100, 90, 0.826, 0.945), "auc": 0.98765}
ALL = {"all": flagged(1000, 200, 0.176, 0.226)}


def entry(threat_model: str, attack: str, epsilon: float | None, **figures) -> dict:
    key = {"threat_model": threat_model, "attack": attack, "epsilon": epsilon}
    return {**key, **ALL, **SUCCESS, **figures}


SUMMARY = {
    "false_positive_rate": 0.05,
    "threshold": 1.14159,
    "validation": flagged(2000, 100, 0.0413, 0.0604),
    "clean": flagged(1000, 61, 0.0478, 0.0776),
    "attacked": [
        entry("white_box", "fgsm", 4.0, successful=NOBODY, auc=None),
        entry("white_box", "fgsm", 8.0),
        entry("black_box", "cw", None),
    ],
}
NAMES = {"black_box": "black box", "gray_box": "gray box", "white_box": "white box"}


def test_rates_stand_in_the_rows_of_their_attack_and_radius():
    table = detection_tables.detection_table(SUMMARY, NAMES, "Detection")
    assert table.title == "Detection"
    assert table.columns == (
        "Attack",
        "images",
        "flagged",
        "successful",
        "flagged of these",
        "AUC of these",
    )
    everyone = "20.0% (17.6–22.6)"
    assert [(row.label, *map(str, row.cells)) for row in table.rows] == [
        ("Black box, CW any size", "1,000", everyone, "100", "90.0% (82.6–94.5)", "0.988"),
        ("White box, FGSM 4/255", "1,000", everyone, "0", "no success", "no success"),
        ("White box, FGSM 8/255", "1,000", everyone, "100", "90.0% (82.6–94.5)", "0.988"),
    ]


def test_only_threat_models_that_are_shown_have_rows():
    table = detection_tables.detection_table(SUMMARY, {"gray_box": "gray box"}, "Detection")
    assert table.rows == ()


def test_the_threshold_is_told_with_what_it_flags_of_clean_images():
    table = detection_tables.operating_point_table(SUMMARY)
    assert [(row.label, *map(str, row.cells)) for row in table.rows] == [
        ("threshold, of scores from 0 to 2", "1.142"),
        ("false positives allowed", "5.0%"),
        ("false positives on validation images", "5.0% (4.1–6.0)"),
        ("false positives on test images", "6.1% (4.8–7.8)"),
    ]


def test_what_was_not_measured_says_so():
    assert str(detection_tables.rate_cell(None)) == "not run"
    assert str(detection_tables.rate_cell(NOBODY)) == "no success"


def test_the_largest_radius_of_each_attack_is_its_own_if_it_finds_one():
    entries = [
        entry("white_box", "pgd", 4.0),
        entry("white_box", "pgd", 16.0),
        entry("black_box", "pgd", 8.0),
        entry("white_box", "pgd", 8.0),
        entry("white_box", "cw", None),
        entry("white_box", "cw", 16.0),
    ]
    assert largest_radii(entries) == [entries[1], entries[2], entries[4]]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
