import dataclasses

import numpy as np
import pytest

from sfm_tf import testing
from sfm_tf.report.defence_section import defence_section
from sfm_tf.report.mask_statistics import mask_statistics
from sfm_tf.report.report_inputs import (
    Gallery,
    PerceivedPerturbation,
    Perturbation,
)

INPUTS = testing.made_up_inputs()
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


def test_ablations_are_shown_beside_the_complete_training_of_their_own():
    scores = {
        "words": "no semantic loss",
        "clean": 0.5,
        "black_box": 0.5,
        "gray_box": 0.5,
        "examples": 10,
        "epsilon": 8.0,
        "mask_mean": 0.5,
        "mask_spread": 0.1,
        "collapse": "",
        "failure": "",
    }
    dark = Gallery(IMAGES, 0 * IMAGES, IMAGES, IMAGES)
    inputs = dataclasses.replace(
        INPUTS,
        ablations={"complete": dark, "no semantic loss": GALLERY},
        ablation_scores=({**scores, "words": "complete"}, scores),
    )
    section = defence_section(inputs, GALLERY)
    assert section.figures[-1].name == "ablations"
    assert section.figures[-1].alternative_text.endswith("complete 0.00.")
    assert [row.label for row in section.tables[0].rows] == ["complete", "no semantic loss"]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
