import dataclasses

import numpy as np
import pytest

from sfm_tf import testing
from sfm_tf.report.breakdown_sections import class_section, failure_section
from sfm_tf.report.report_inputs import FailureGallery

FIGURES = testing.HALF_RIGHT
INPUTS = testing.made_up_inputs()
NAMES = {"white_box": "white box"}

IMAGES = np.full((1, 4, 4, 1), 0.5, np.float32)
FAILURE = {
    "image_index": 3,
    "label": "cat",
    "prediction": "dog",
    "threat_model": "white_box",
    "attack": "pgd",
    "epsilon": 8.0,
    "size": 7.5,
    "loss": 2.0,
}


def test_classes_have_a_row_each_and_one_that_was_not_looked_at_says_so():
    per_class = [
        {"class": "cat", "clean": FIGURES, "worst_case": FIGURES},
        {"class": "dog", "clean": None, "worst_case": None},
    ]
    breakdown = {"per_class": per_class, "confusion": None}
    section = class_section(dataclasses.replace(INPUTS, breakdown=breakdown), NAMES)
    (table,) = section.tables
    rows = {row.label: [str(cell) for cell in row.cells] for row in table.rows}
    assert rows == {"cat": ["50.0% (24.0–76.0)"] * 2, "dog": ["not run"] * 2}
    assert [figure.name for figure in section.figures] == ["classes"]
    assert section.paragraphs[0].startswith("No attack at a radius was run")


def test_a_failure_has_a_row_and_a_column():
    gallery = FailureGallery([FAILURE], IMAGES, IMAGES)
    section = failure_section(dataclasses.replace(INPUTS, failures=gallery), NAMES)
    assert section.tables[0].rows[0].label == "number 3"
    assert [figure.name for figure in section.figures] == ["failures"]
    assert section.paragraphs == ()


def test_no_failure_and_no_results_are_said():
    nothing = FailureGallery([], IMAGES[:0], IMAGES[:0])
    section = failure_section(dataclasses.replace(INPUTS, failures=nothing), NAMES)
    assert section.paragraphs[0].startswith("No attack at a radius turned an image wrong")
    for section in (failure_section(INPUTS, NAMES), class_section(INPUTS, NAMES)):
        assert "are not stored" in section.paragraphs[0]
        assert section.tables == section.figures == ()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
