import io
import sys
import xml.etree.ElementTree

import matplotlib
import numpy as np
import PIL.Image
import pytest

from sfm_tf.report.detection_figure import roc_figure
from sfm_tf.report.figures import ReportFigure

NAMES = {"black_box": "black box", "white_box": "white box", "score_based": "score-based"}
GRID = [place / 100 for place in range(101)]


def _entry(threat_model, attack, epsilon=8.0, power=0.5, rate=0.25):
    curve = {
        "false_positive_rates": GRID,
        "true_positive_rates": [share**power for share in GRID],
    }
    return {
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "successful": {"rate": rate},
        "auc": 1 / (1 + power),
        "curve": curve,
    }


def _failed(threat_model, attack, epsilon):
    return {**_entry(threat_model, attack, epsilon, rate=None), "auc": None, "curve": None}


def _figure(entries, names=NAMES) -> ReportFigure | None:
    return roc_figure("roc", {"clean": {"rate": 0.0625}, "attacked": entries}, names)


def several() -> ReportFigure:
    return _figure(
        [
            _entry("white_box", "fgsm", 4.0, rate=0.125),
            _entry("white_box", "fgsm", 8.0, rate=0.5),
            _entry("white_box", "cw", None, power=0.25),
            _entry("black_box", "pgd", 8.0, rate=0.75),
            _failed("black_box", "noise", 8.0),
            _failed("score_based", "square", 8.0),
        ]
    )


def one() -> ReportFigure:
    return _figure([_entry("white_box", "pgd")])


@pytest.mark.parametrize("draw", [several, one])
def test_files_are_images_that_are_the_same_every_time(draw):
    first, second = draw(), draw()
    assert first.png == second.png
    assert first.svg == second.svg
    picture = np.asarray(PIL.Image.open(io.BytesIO(first.png)).convert("RGB"))
    # As wide as the text of a page at 200 points per inch.
    assert 900 < picture.shape[1] < 1300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4
    root = xml.etree.ElementTree.fromstring(first.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_no_state_is_left_in_matplotlib():
    before = dict(matplotlib.rcParams)
    several()
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_every_line_is_spoken_and_only_those_of_the_largest_radius():
    figure = several()
    assert "which flags 6.2% of the clean images" in figure.caption
    assert figure.alternative_text == (
        f"{figure.caption} Black box: PGD 8/255 75.0% flagged, area under the curve 0.67. "
        "White box: FGSM 8/255 50.0% flagged, area under the curve 0.67, "
        "CW any size 25.0% flagged, area under the curve 0.80."
    )


def test_without_a_success_there_is_nothing_to_draw():
    assert _figure([]) is None
    assert _figure([_failed("white_box", "pgd", 8.0)]) is None
    assert _figure([_entry("adaptive", "pgd")]) is None


def _lines(figure):
    """Style and points of every path as wide as a curve, those of the legend included."""
    root = xml.etree.ElementTree.fromstring(figure.svg)
    for path in root.iter("{http://www.w3.org/2000/svg}path"):
        style = path.get("style", "")
        if "stroke-width: 1.4" in style:
            numbers = path.get("d").replace("M", " ").replace("L", " ").split()
            yield style, np.array(numbers, float).reshape(-1, 2)


def test_as_many_attacks_as_there_are_have_lines_that_differ():
    attacks = ["fgsm", "pgd", "mim", "diverse", "cw", "apgd_ce", "apgd_dlr", "fab_t", "apgd_t"]
    figure = _figure([_entry("white_box", attack) for attack in attacks])
    assert len({style for style, _ in _lines(figure)}) == len(attacks)


def test_the_curve_is_drawn_in_steps_from_the_left_to_the_upper_right():
    entry = _entry("white_box", "pgd")
    entry["curve"] = {
        "false_positive_rates": [0.0, 0.5, 1.0],
        "true_positive_rates": [0.5, 0.75, 1.0],
    }
    (_, points), _ = _lines(_figure([entry]))
    across, up = (points - points[0]).T / np.array([[1.0], [-1.0]])
    np.testing.assert_allclose(across / across[-1], [0, 0.5, 0.5, 1, 1], atol=1e-4)
    np.testing.assert_allclose(up / up[-1], [0, 0, 0.5, 0.5, 1], atol=1e-4)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
