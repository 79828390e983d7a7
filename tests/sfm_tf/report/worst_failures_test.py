import numpy as np
import pytest

from sfm_tf.evaluation.results import join_results, results_rows
from sfm_tf.report.report_inputs import FailureGallery
from sfm_tf.report.worst_failures import failure_gallery, failure_table, find_failures

NAMES = ("cat", "dog")
LABELS = np.array([0, 0, 1, 1])
CLEAN = np.array([0, 0, 1, 0])  # The last image is wrong to begin with.


def rows(attack, epsilon, prediction, linf, loss, threat_model="white_box", defence="sfm"):
    values = {
        "label": LABELS,
        "defence": defence,
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "clean_prediction": CLEAN,
        "prediction": prediction,
        "linf": np.array(linf) / 255,
        "l2": 1.0 - np.array(linf) / 255,
        "iterations": 3,
        "loss": loss,
        "zero_gradient": False,
    }
    return results_rows(len(LABELS), values)


RESULTS = join_results(
    [
        rows("clean", 0.0, CLEAN, 0.0, 9.0, "none"),
        rows("fgsm", 8.0, [1, 0, 0, 0], [8, 8, 8, 8], [2.0, 9.0, 5.0, 9.0]),
        # The rounding of float32 is no smaller perturbation.
        rows("pgd", 8.0, [1, 0, 0, 0], [8.0001, 8, 7.9999, 8], [3.0, 9.0, 4.0, 9.0]),
        rows("pgd", 4.0, [0, 1, 1, 0], [4, 4, 4, 4], [1.0, 1.0, 1.0, 9.0], "gray_box"),
        rows("cw", np.inf, [1, 1, 0, 1], [1, 1, 1, 1], 9.0),
        rows("pgd", 8.0, [1, 1, 0, 1], [1, 1, 1, 1], 9.0, defence="undefended"),
    ]
)


def test_smallest_perturbations_come_first_then_the_highest_loss():
    found = find_failures(RESULTS, "sfm", "inf", NAMES, 5)
    assert [(f["image_index"], f["attack"], f["size"], f["loss"]) for f in found] == [
        (1, "pgd", 4.0, 1.0),
        (2, "fgsm", 8.0, 5.0),
        (0, "pgd", 8.0, 3.0),
    ]
    assert found[0]["threat_model"] == "gray_box"
    assert found[0]["epsilon"] == 4.0
    assert [(f["label"], f["prediction"]) for f in found] == [
        ("cat", "dog"),
        ("dog", "cat"),
        ("cat", "dog"),
    ]


def test_no_more_than_asked_for_and_by_the_norm_that_bounds():
    (found,) = find_failures(RESULTS, "sfm", "2", NAMES, 1)
    assert found["attack"] in ("pgd", "fgsm")
    assert found["size"] == pytest.approx(255 - 8, abs=0.01)


def test_nothing_that_went_wrong_is_no_failure():
    assert find_failures(RESULTS, "tvm", "inf", NAMES, 5) == []


def test_the_table_names_the_attack_that_won():
    found = find_failures(RESULTS, "sfm", "inf", NAMES, 2)
    names = {"white_box": "white box", "gray_box": "gray box"}
    table = failure_table(found, names, "inf")
    assert table.columns[-2:] == ("L∞ in 1/255", "loss")
    assert [(row.label, *map(str, row.cells)) for row in table.rows] == [
        ("number 1", "cat", "dog", "PGD, gray box", "4/255", "4.00", "1"),
        ("number 2", "dog", "cat", "FGSM, white box", "8/255", "8.00", "5"),
    ]


def test_the_figure_says_what_each_image_is_taken_for_and_how_it_is_magnified():
    found = find_failures(RESULTS, "sfm", "inf", NAMES, 2)
    images = np.full((2, 4, 4, 1), 0.5, np.float32)
    figure = failure_gallery("failures", FailureGallery(found, images, images + np.float32(0.125)))
    assert "multiplied by 4.0 around mid-grey" in figure.caption
    assert figure.alternative_text.endswith(
        "cat taken for dog after PGD, dog taken for cat after FGSM."
    )
    assert figure.png.startswith(b"\x89PNG")


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
