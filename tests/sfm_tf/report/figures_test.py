import io
import itertools
import sys
import xml.etree.ElementTree

import matplotlib
import matplotlib.text
import numpy as np
import PIL.Image
import pytest

from sfm_tf.evaluation.significance import wilson_interval
from sfm_tf.report import figures
from sfm_tf.report.figures import (
    Bar,
    ReportFigure,
    class_chart,
    confusion_map,
    draw_grid,
    epsilon_curves,
    ladder_curve,
    loss_curves,
    plain_words,
    render_figure,
    roc_figure,
    tuning_curves,
)

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


RED, GREEN = (np.full((1, 4, 4, 3), colour, np.float32) for colour in ((1, 0, 0), (0, 1, 0)))


def _pixels(rows, captions=()) -> np.ndarray:
    figure = render_figure(draw_grid(rows, captions), "grid", "", "")
    return np.asarray(PIL.Image.open(io.BytesIO(figure.png)).convert("RGB"))


def _words(figure) -> list[str]:
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    return [*texts, *(axes.get_ylabel() for axes in figure.axes)]


def test_rows_are_one_below_the_other_and_columns_side_by_side():
    images = np.concatenate([RED, GREEN])
    pixels = _pixels({"first": images, "second": images[::-1]})
    red, green = (
        np.argwhere(np.all(pixels == colour, axis=-1)) for colour in ((255, 0, 0), (0, 255, 0))
    )
    top = pixels.shape[0] / 2
    red_above, green_above = (found[found[:, 0] < top] for found in (red, green))
    assert red_above[:, 1].max() < green_above[:, 1].min()
    red_below, green_below = (found[found[:, 0] > top] for found in (red, green))
    assert green_below[:, 1].max() < red_below[:, 1].min()


def test_grey_stands_beside_colour_and_what_is_beyond_is_black_or_white():
    strips = draw_grid({"mask": 7.0 - 14.0 * RED[..., :1], "image": RED}).axes
    shown = [np.asarray(axes.images[0].get_array()) for axes in strips]
    assert shown[0].shape == shown[1].shape == (4, 4, 3)
    assert np.all(shown[0] == 0.0)


def test_columns_have_their_words_and_more_of_them_continue_below():
    count = 11
    figure = draw_grid(
        {"one": np.repeat(RED, count, axis=0)}, [f"number {n}" for n in range(count)]
    )
    assert len(figure.axes) == 2
    assert _words(figure) == [*(f"number {n}" for n in range(count)), "one", "one"]
    assert [len(axes.texts) for axes in figure.axes] == [8, 3]


def test_no_word_is_read_as_a_formula():
    figure = draw_grid({r"$\frac{$": RED}, [r"a$b$ $\x{"])
    render_figure(figure, "words", "", "")
    texts = figure.findobj(matplotlib.text.Text)
    assert not any(t.get_parse_math() for t in texts if "$" in t.get_text())


def test_a_long_name_is_cut_and_stays_on_its_line():
    assert plain_words("sea\nlion") == "sea lion"
    assert plain_words("x" * 18) == "x" * 18
    assert plain_words("x" * 19) == "x" * 17 + "…"


NAMES = {"white_box": "white box", "decision_based": "decision-based", "gray_box": "gray box"}


def _entry(correct, examples=20, **keys):
    low, high = wilson_interval(correct, examples)
    return {
        "defence": "sfm",
        "examples": examples,
        "correct": correct,
        "accuracy": correct / examples,
        "accuracy_low": low,
        "accuracy_high": high,
        **keys,
    }


def _attacked(correct, epsilon, threat_model="white_box", attack="pgd", **keys):
    keys = {"threat_model": threat_model, "attack": attack, "epsilon": epsilon, **keys}
    return _entry(correct, **keys)


METRICS = {
    "subject": "sfm",
    "clean": [_entry(19, defence="undefended"), _entry(18)],
    "under_attack": [
        _attacked(4, 16.0),
        _attacked(10, 8.0),
        _attacked(1, 8.0, defence="undefended"),
        _attacked(2, 8.0, "decision_based", "hop_skip_jump", examples=4),
    ],
    "worst_case": [
        _attacked(9, 8.0, strongest_attack="pgd"),
        _attacked(3, None, strongest_attack="pgd"),
    ],
}
LADDER = [
    {"epsilon": epsilon, "examples": 10, "correct": correct, "right": ""}
    for epsilon, correct in ((0.0, 9), (2.0, 5), (127.5, 0))
]
CURVE = [
    {"steps": steps, "median_loss": loss, "mean_loss": 2 * loss, "success": success}
    for steps, loss, success in ((0, 0.5, 0.1), (1, 1.0, 0.25), (30, 4.0, 1.0))
]
TUNING = [
    {"sparsity_weight": 0.01, "clean": 0.5, "black_box": 0.5, "gray_box": None},
    {"sparsity_weight": 0.0, "clean": 0.75, "black_box": 0.25, "gray_box": None},
]


def test_lines_are_of_the_subject_and_rise_from_no_attack_to_the_largest_radius():
    figure = epsilon_curves("epsilon", METRICS, NAMES)
    assert "PGD 90.0% at ε 0, 50.0% at ε 8, 20.0% at ε 16;" in figure.alternative_text
    assert "worst case 90.0% at ε 0, 45.0% at ε 8." in figure.alternative_text
    assert "95% Wilson bands" in figure.caption
    assert figure.png.startswith(b"\x89PNG")


def test_a_line_of_other_images_does_not_start_without_an_attack():
    figure = epsilon_curves("epsilon", METRICS, NAMES)
    assert "Decision-based: HopSkipJump 50.0% at ε 8." in figure.alternative_text
    assert "Gray box" not in figure.alternative_text


def test_the_band_is_the_wilson_interval(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "render_figure", lambda figure, *_: drawn.append(figure))
    ladder_curve("ladder", LADDER)
    (axes,) = drawn[0].axes
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for entry in LADDER:
        at_place = corners[corners[:, 0] == entry["epsilon"], 1]
        expected = wilson_interval(entry["correct"], entry["examples"])
        assert (at_place.min(), at_place.max()) == pytest.approx(expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "127.5"]


def test_the_ladder_tells_its_images_and_every_radius():
    figure = ladder_curve("ladder", LADDER)
    assert "on 10 images" in figure.caption
    assert "PGD 90.0% at ε 0, 50.0% at ε 2, 0.0% at ε 127.5." in figure.alternative_text


def test_loss_and_success_stand_side_by_side():
    figure = loss_curves("loss", CURVE, 20)
    assert "wrong images 10.0% at steps 0, 25.0% at steps 1" in figure.alternative_text
    assert figure.alternative_text.endswith("Median loss: 0.5 at 0, 1 at 1, 4 at 30.")
    assert "Wilson" in figure.caption
    assert "Wilson" not in loss_curves("loss", CURVE, None).caption


def test_what_was_not_measured_has_no_figure():
    nothing = {**METRICS, "under_attack": [], "worst_case": []}
    assert epsilon_curves("epsilon", nothing, NAMES) is None
    assert ladder_curve("ladder", []) is None
    assert loss_curves("loss", (), 20) is None


def test_tuning_is_sorted_by_the_weight_and_says_what_is_missing():
    figure = tuning_curves("tuning", TUNING)
    assert "clean 75.0% at w₁ 0, 50.0% at w₁ 0.01;" in figure.alternative_text
    assert figure.caption.endswith("Not measured: gray box.")
    assert "Wilson" not in figure.caption


def test_tuning_has_bands_where_the_number_of_images_is_known():
    counted = [{**entry, "examples": 20, "gray_box": 0.5} for entry in TUNING]
    caption = tuning_curves("tuning", counted).caption
    assert "95% Wilson bands" in caption
    assert "Not measured" not in caption


def test_the_same_figures_give_the_same_files():
    first, second = (ladder_curve("ladder", LADDER) for _ in range(2))
    assert (first.png, first.svg) == (second.png, second.svg)


def test_a_single_radius_and_a_single_weight_are_drawn():
    assert ladder_curve("one", LADDER[:1]) is not None
    assert tuning_curves("one", TUNING[1:]) is not None


def _accuracy(share):
    return {"accuracy": share, "accuracy_low": share / 2, "accuracy_high": (1 + share) / 2}


def _class(name, clean, worst):
    measured = [None if share is None else _accuracy(share) for share in (clean, worst)]
    return {"class": name, "clean": measured[0], "worst_case": measured[1]}


CLASSES = [_class("cat", 0.75, 0.25), _class("a $b$\n_", 1.0, None)]
CONFUSION = {
    "threat_model": "white_box",
    "attack": "pgd",
    "epsilon": 8.0,
    "turned_wrong": 7,
    "counts": [[1, 5], [2, 0]],
}


def _axes(monkeypatch, draw, *arguments):
    drawn = []
    monkeypatch.setattr(figures, "render_figure", lambda *values: drawn.append(values))
    draw(*arguments)
    return drawn[0][0].axes[0]


def test_every_class_is_told_with_what_was_not_run():
    figure = class_chart("classes", CLASSES)
    assert "cat: without an attack 75.0%, worst case 25.0%; " in figure.alternative_text
    assert figure.alternative_text.endswith("without an attack 100.0%, worst case not run.")
    assert figure.png.startswith(b"\x89PNG")


def test_bars_have_the_lengths_of_the_accuracies(monkeypatch):
    axes = _axes(monkeypatch, class_chart, "classes", CLASSES)
    assert [bar.get_width() for bar in axes.patches] == [0.75, 1.0, 0.25, 0.0]
    assert [text.get_text() for text in axes.texts] == ["not run"]


def test_of_many_classes_the_worst_have_bars(monkeypatch):
    many = [_class(f"class {n}", 1.0, n / 50) for n in range(50)][::-1]
    axes = _axes(monkeypatch, class_chart, "classes", many)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"class {n}" for n in range(40)]


def test_the_map_names_the_attack_and_the_most_frequent_mistakes():
    figure = confusion_map("confusion", CONFUSION, ["cat", "dog"], {"white_box": "white box"})
    assert "PGD 8/255, white box, which turned 7 images wrong" in figure.caption
    assert figure.alternative_text.endswith(
        "Most often mistaken: cat for dog 5 times, dog for cat 2 times."
    )


def test_the_map_shows_shares_of_the_true_class_and_counts(monkeypatch):
    names = {"white_box": "white box"}
    axes = _axes(monkeypatch, confusion_map, "confusion", CONFUSION, ["cat", "dog"], names)
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shares, [[1 / 6, 5 / 6], [1.0, 0.0]])
    assert [text.get_text() for text in axes.texts] == ["1", "5", "2", "0"]


def test_classes_without_images_and_many_of_them_are_drawn(monkeypatch):
    counts = np.zeros((60, 60), int)
    counts[3, 3] = 4
    many = {**CONFUSION, "counts": counts.tolist()}
    class_names = [str(place) for place in range(60)]
    axes = _axes(monkeypatch, confusion_map, "many", many, class_names, {"white_box": "white box"})
    assert np.asarray(axes.images[0].get_array()).sum() == 1.0
    assert len(axes.texts) == 0


def test_without_a_mistake_it_says_so():
    right = {**CONFUSION, "counts": [[3, 0], [0, 0]], "turned_wrong": 0}
    figure = confusion_map("confusion", right, ["cat", "dog"], {"white_box": "white box"})
    assert figure.alternative_text.endswith("No image was mistaken.")


DETECTION_FIGURE_NAMES = {
    "black_box": "black box",
    "white_box": "white box",
    "score_based": "score-based",
}
GRID = [place / 100 for place in range(101)]


def _detection_figure_entry(threat_model, attack, epsilon=8.0, power=0.5, rate=0.25):
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
    return {
        **_detection_figure_entry(threat_model, attack, epsilon, rate=None),
        "auc": None,
        "curve": None,
    }


def _figure(entries, names=DETECTION_FIGURE_NAMES) -> ReportFigure | None:
    return roc_figure("roc", {"clean": {"rate": 0.0625}, "attacked": entries}, names)


def several() -> ReportFigure:
    return _figure(
        [
            _detection_figure_entry("white_box", "fgsm", 4.0, rate=0.125),
            _detection_figure_entry("white_box", "fgsm", 8.0, rate=0.5),
            _detection_figure_entry("white_box", "cw", None, power=0.25),
            _detection_figure_entry("black_box", "pgd", 8.0, rate=0.75),
            _failed("black_box", "noise", 8.0),
            _failed("score_based", "square", 8.0),
        ]
    )


def one() -> ReportFigure:
    return _figure([_detection_figure_entry("white_box", "pgd")])


@pytest.mark.parametrize("draw", [several, one])
def test_detection_figure_files_are_images_that_are_the_same_every_time(draw):
    first, second = draw(), draw()
    assert first.png == second.png
    assert first.svg == second.svg
    picture = np.asarray(PIL.Image.open(io.BytesIO(first.png)).convert("RGB"))
    # As wide as the text of a page at 200 points per inch.
    assert 900 < picture.shape[1] < 1300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4
    root = xml.etree.ElementTree.fromstring(first.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_detection_figure_no_state_is_left_in_matplotlib():
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
    assert _figure([_detection_figure_entry("adaptive", "pgd")]) is None


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
    figure = _figure([_detection_figure_entry("white_box", attack) for attack in attacks])
    assert len({style for style, _ in _lines(figure)}) == len(attacks)


def test_the_curve_is_drawn_in_steps_from_the_left_to_the_upper_right():
    entry = _detection_figure_entry("white_box", "pgd")
    entry["curve"] = {
        "false_positive_rates": [0.0, 0.5, 1.0],
        "true_positive_rates": [0.5, 0.75, 1.0],
    }
    (_, points), _ = _lines(_figure([entry]))
    across, up = (points - points[0]).T / np.array([[1.0], [-1.0]])
    np.testing.assert_allclose(across / across[-1], [0, 0.5, 0.5, 1, 1], atol=1e-4)
    np.testing.assert_allclose(up / up[-1], [0, 0, 0.5, 0.5, 1], atol=1e-4)
