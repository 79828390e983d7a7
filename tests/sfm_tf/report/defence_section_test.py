import dataclasses

import numpy as np
import pytest

from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.blessing import Blessing
from sfm_tf.report.defence_section import defence_section
from sfm_tf.report.mask_statistics import mask_statistics
from sfm_tf.report.report_inputs import (
    Gallery,
    PerceivedPerturbation,
    Perturbation,
    ReportInputs,
)

FIGURES = {
    "examples": 10,
    "correct": 5,
    "accuracy": 0.5,
    "accuracy_low": 0.24,
    "accuracy_high": 0.76,
}
INPUTS = ReportInputs(
    experiment="one",
    dataset="digits",
    statistics={},
    class_counts={"cat": 10},
    evaluation=EvaluationConfig(epsilons=(8.0,)),
    metrics={
        "subject": "sfm",
        "clean": [{"defence": "sfm", **FIGURES}],
        "under_attack": [],
        "worst_case": [],
    },
    blessing=Blessing(True, ("A reason.",)),
    history={},
    manifests=(),
    gallery=None,
)
NAMES = {"white_box": "white box"}

IMAGES = np.random.default_rng(0).random((1, 4, 4, 1)).astype(np.float32)
GALLERY = Gallery(IMAGES, IMAGES, IMAGES, IMAGES)


def test_a_figure_of_the_paper_that_has_no_counterpart_is_said():
    section = defence_section(INPUTS, GALLERY)
    assert [figure.name for figure in section.figures] == ["defence"]
    assert section.tables == ()
    assert len(section.paragraphs) == 3
    assert "Figure 1 of the paper" in section.paragraphs[0]
    assert "Figure 5 of the paper" in section.paragraphs[2]


def test_figures_come_in_the_order_of_the_paper():
    attacked = Perturbation("white_box", "pgd", 8.0, IMAGES, IMAGES)
    inputs = dataclasses.replace(
        INPUTS,
        perceived=PerceivedPerturbation(attacked, IMAGES, IMAGES, IMAGES),
        ablations={"no semantic loss": GALLERY},
        masks=mask_statistics(IMAGES, np.array([0]), ("cat",)),
    )
    section = defence_section(inputs, GALLERY)
    assert [figure.name for figure in section.figures] == ["perceived", "defence", "ablations"]
    assert section.figures[0].caption.startswith("PGD, white box, ε = 8/255 in L∞")
    assert [row.label for row in section.tables[0].rows] == ["all", "cat"]
    assert section.paragraphs == ()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
