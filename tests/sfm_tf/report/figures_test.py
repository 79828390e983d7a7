import io
import itertools
import sys
import xml.etree.ElementTree

import matplotlib
import numpy as np
import PIL.Image
import pytest

from sfm_tf.report import figures
from sfm_tf.report.figures import Bar

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((3, 8, 8, 3)).astype(np.float32)
MASKS = RANDOM.random((3, 8, 8, 1)).astype(np.float32)


def chart() -> figures.ReportFigure:
    bars = {"none": [Bar(0.9, 0.85, 0.93), None], "sfm": [Bar(0.0, 0.0, 0.02), Bar(1.0, 0.9, 1.0)]}
    return figures.accuracy_chart("accuracy", "White box", ["clean", "PGD\n8/255"], bars)


def gallery() -> figures.ReportFigure:
    return figures.defence_gallery("defence", IMAGES, MASKS, IMAGES * MASKS, IMAGES)


def perturbations() -> figures.ReportFigure:
    adversarial = np.clip(IMAGES + 4 / 255, 0.0, 1.0)
    return figures.perturbation_gallery("pgd", "PGD", 8.0, IMAGES, adversarial)


def curves() -> figures.ReportFigure:
    return figures.training_curves("training", {"loss": [2.0, 1.5], "mask": [float("nan"), 0.25]})


ALL = (chart, gallery, perturbations, curves)


@pytest.mark.parametrize("draw", ALL)
def test_files_are_images_that_are_the_same_every_time(draw):
    first, second = draw(), draw()
    assert first.png == second.png
    assert first.svg == second.svg
    picture = np.asarray(PIL.Image.open(io.BytesIO(first.png)).convert("RGB"))
    assert picture.shape[1] > 400
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4
    root = xml.etree.ElementTree.fromstring(first.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert b"<dc:date" not in first.svg


@pytest.mark.parametrize("draw", ALL)
def test_every_figure_has_a_caption_and_says_what_it_shows(draw):
    figure = draw()
    assert len(figure.caption) > 20
    assert len(figure.alternative_text) > 40


@pytest.mark.parametrize("draw", ALL)
def test_no_state_is_left_in_matplotlib(draw):
    before = dict(matplotlib.rcParams)
    draw()
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_the_chart_speaks_every_accuracy_and_names_what_was_not_run():
    assert chart().alternative_text.endswith(
        "none: clean 90.0%, PGD 8/255 not run. sfm: clean 0.0%, PGD 8/255 100.0%."
    )


def many(count: int, label: str) -> matplotlib.figure.Figure:
    bars = {name: [Bar(0.5, 0.4, 0.6)] * count for name in ("none", "sfm")}
    figure = figures.draw_accuracies([f"{label}\n{radius}/255" for radius in range(count)], bars)
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize(
    ("count", "label"),
    [
        *itertools.product([2, 6, 8, 9, 12, 30], ["PGD", "worst\ncase"]),
        *itertools.product([2, 5], ["APGD-DLR", "AutoAttack"]),
    ],
)
def test_no_two_labels_of_groups_touch(count, label):
    (axes,) = many(count, label).axes
    boxes = [text.get_window_extent() for text in axes.get_xticklabels()]
    assert len(boxes) == count
    assert {text.get_rotation() for text in axes.get_xticklabels()} == {0.0}
    for left, right in zip(boxes, boxes[1:], strict=False):
        assert left.x1 < right.x0


def test_labels_that_are_wider_than_their_group_are_slanted_and_apart():
    figure = many(12, "PGD, other surrogate")
    (axes,) = figure.axes
    texts = axes.get_xticklabels()
    assert {text.get_rotation() for text in texts} == {45.0}
    assert texts[3].get_text() == "PGD, other surrogate 3/255"
    # Slanted lines are as far apart as their anchors times the sine of their angle.
    step = np.diff(axes.transData.transform([(0, 0), (1, 0)])[:, 0])[0]
    height = texts[0].get_size() * figure.dpi / 72
    assert step * np.sin(np.pi / 4) > 1.5 * height


def test_bars_of_many_defences_are_told_apart_and_their_names_fit():
    names = [f"SFM-Defence, adversarial training {place}" for place in range(11)]
    figure = figures.draw_accuracies(["clean"], {name: [Bar(0.5, 0.4, 0.6)] for name in names})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in axes.patches}
    assert len(looks) == len(names)
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width


def test_a_chart_grows_with_its_groups_and_is_as_high_as_ever():
    assert tuple(many(2, "PGD").get_size_inches()) == (5.4, 3.4)
    assert tuple(many(12, "PGD").get_size_inches()) == pytest.approx((8.0, 3.4))


def test_the_scale_of_a_perturbation_is_stated():
    figure = perturbations()
    assert "ε = 8/255" in figure.caption
    # 255 / (2 * 8) = 15.9 takes the whole ball to the whole range of a pixel.
    assert "multiplied by 15.9 around mid-grey" in figure.caption
    assert "at most 4.0/255 in size" in figure.alternative_text


def test_a_uniform_perturbation_of_half_the_radius_is_three_quarters_grey():
    images = np.full((1, 8, 8, 3), 0.25, np.float32)
    figure = figures.perturbation_gallery("pgd", "PGD", 16.0, images, images + 8 / 255)
    picture = np.asarray(PIL.Image.open(io.BytesIO(figure.png)).convert("L"))
    shares = np.bincount(picture.ravel(), minlength=256) / picture.size
    assert shares[int(0.75 * 255) : int(0.75 * 255) + 2].sum() > 0.05


def test_the_mean_of_the_masks_is_told():
    assert f"mean is {MASKS.mean():.2f}" in gallery().alternative_text


def test_grey_images_and_more_images_than_fit_side_by_side_are_drawn():
    images = RANDOM.random((11, 4, 4, 1)).astype(np.float32)
    few = figures.defence_gallery("few", *[images[:8]] * 4)
    many = figures.defence_gallery("many", *[images] * 4)
    heights = [PIL.Image.open(io.BytesIO(figure.png)).size[1] for figure in (few, many)]
    assert 1.8 < heights[1] / heights[0] < 2.2


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
