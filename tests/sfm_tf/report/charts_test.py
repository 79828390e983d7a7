"""Charts are read as what they are: specifications with the data that they show."""

import numpy as np
import pytest

from sfm_tf.audit.probes.measurements import AfterSteps, AtRadius
from sfm_tf.evaluation.metrics import CleanAccuracy, Metrics
from sfm_tf.evaluation.significance import wilson_interval
from sfm_tf.report import charts
from sfm_tf.report.charts import Point
from sfm_tf.report.inputs import RadiusAccuracy
from tests import made_up

NAMES = {"white_box": "white box", "decision_based": "decision-based", "gray_box": "gray box"}


def accuracy(correct: int, examples: int = 20) -> dict:
    return made_up.accuracy(correct, examples)


CLEAN = tuple(
    CleanAccuracy(defence=name, **accuracy(correct))
    for name, correct in (("undefended", 19), ("sfm", 18))
)
METRICS = Metrics(
    subject="sfm",
    clean=CLEAN,
    under_attack=(
        made_up.attacked("white_box", "pgd", 16.0, accuracy(4)),
        made_up.attacked("white_box", "pgd", 8.0, accuracy(10)),
        made_up.attacked("white_box", "pgd", 8.0, accuracy(1), "undefended"),
        made_up.attacked("decision_based", "hop_skip_jump", 8.0, accuracy(2, 4)),
    ),
    worst_case=(
        made_up.worst("white_box", 8.0, accuracy(9)),
        made_up.worst("white_box", None, accuracy(3)),
    ),
)
LADDER = [
    AtRadius(epsilon=epsilon, examples=10, correct=correct, right="")
    for epsilon, correct in ((0.0, 9), (2.0, 5), (127.5, 0))
]
CURVE = [
    AfterSteps(steps=steps, median_loss=loss, mean_loss=2 * loss, success=success)
    for steps, loss, success in ((0, 0.5, 0.1), (1, 1.0, 0.25), (30, 4.0, 1.0))
]
TUNING = [
    {"sparsity_weight": 0.01, "clean": 0.5, "black_box": 0.5, "gray_box": None},
    {"sparsity_weight": 0.0, "clean": 0.75, "black_box": 0.25, "gray_box": None},
]
CLASSES = [
    {"class": "cat", "clean": accuracy(15), "worst_case": accuracy(5)},
    {"class": "dog", "clean": accuracy(20), "worst_case": None},
]
CONFUSION = {
    "threat_model": "white_box",
    "attack": "pgd",
    "epsilon": 8.0,
    "turned_wrong": 7,
    "counts": [[1, 5], [2, 0]],
}
RADII = [
    RadiusAccuracy(defence=name, epsilon=epsilon, **accuracy(correct))
    for name, correct in (("undefended", 12), ("sfm", 16))
    for epsilon in (0.0, 8.0)
]


def detected(threat_model, attack, epsilon, rate):
    curve = {"false_positive_rates": [0.0, 0.1, 1.0], "true_positive_rates": [0.0, 0.6, 1.0]}
    return {
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "successful": {"rate": rate},
        "auc": None if rate is None else 0.75,
        "curve": None if rate is None else curve,
    }


DETECTION = {
    "clean": {"rate": 0.0625},
    "attacked": [
        detected("white_box", "fgsm", 4.0, 0.125),
        detected("white_box", "fgsm", 8.0, 0.5),
        detected("gray_box", "pgd", 8.0, 0.75),
        detected("white_box", "noise", 8.0, None),
    ],
}

FIGURES = {
    "decision": charts.decision_chart("decision", RADII),
    "accuracy": charts.accuracy_chart(
        "accuracy",
        "White box",
        [
            charts.accuracy_point(series, place, entry)
            for series, entry in zip(("none", "sfm"), CLEAN, strict=True)
            for place, entry in (("clean", entry), ("PGD 8/255", None))
        ],
    ),
    "epsilon": charts.epsilon_curves("epsilon", METRICS, NAMES),
    "ladder": charts.ladder_curve("ladder", LADDER),
    "loss": charts.loss_curve("loss", CURVE),
    "success": charts.success_curve("success", CURVE, 20),
    "tuning": charts.tuning_curves("tuning", TUNING),
    "training": charts.training_curves("training", {"loss": [1.0, np.nan, 0.5], "mask": [0.1]}),
    "classes": charts.class_chart("classes", CLASSES),
    "confusion": charts.confusion_map("confusion", CONFUSION, ["cat", "dog"], NAMES),
    "roc": charts.roc_chart("roc", DETECTION, NAMES),
}


def data(name: str) -> list[dict]:
    return FIGURES[name].chart["data"]["values"]


@pytest.mark.parametrize("name", FIGURES)
def test_every_chart_is_drawn_and_tells_what_it_shows_to_who_cannot_see_it(name):
    figure = FIGURES[name]
    svg = figure.svg()
    assert svg.startswith("<svg")
    assert charts.png(svg).startswith(b"\x89PNG")
    assert figure.chart["description"] == figure.alternative_text
    assert figure.alternative_text.startswith(figure.caption)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("decision", "SFM-Defence: 80.0% at ε 0, 80.0% at ε 8."),
        ("accuracy", "none: clean 95.0%, PGD 8/255 not run. sfm: clean 90.0%, PGD 8/255 not run."),
        # From no attack to the largest radius, only of the evaluated model.
        ("epsilon", "White box, PGD: 90.0% at ε 0, 50.0% at ε 8, 20.0% at ε 16."),
        ("epsilon", "White box, worst case: 90.0% at ε 0, 45.0% at ε 8."),
        # The line of an attack on fewer images does not start without an attack.
        ("epsilon", "Decision-based, HopSkipJump: 50.0% at ε 8."),
        ("ladder", "PGD: 90.0% at ε 0, 50.0% at ε 2, 0.0% at ε 127.5."),
        ("loss", "Median loss: 0.5 at 0, 1 at 1, 4 at 30."),
        ("success", "wrong images: 10.0% at steps 0, 25.0% at steps 1, 100.0% at steps 30."),
        ("tuning", "Not measured: gray box. clean: 75.0% at w₁ 0, 50.0% at w₁ 0.01."),
        ("training", "Last values: loss 0.5, mask 0.1."),
        ("classes", "in the worst case: cat 25.0%, dog not run."),
        ("confusion", "PGD 8/255, white box, which broke 7 images."),
        ("confusion", "Most often mistaken: cat for dog 5 times, dog for cat 2 times."),
        # Of each attack the largest radius, and none that had no success.
        ("roc", "White box, FGSM 8/255: 50.0% flagged, area under the curve 0.75."),
        ("roc", "which flags 6.2% of the clean images"),
    ],
)
def test_the_figures_are_told_in_words(name, told):
    assert told in FIGURES[name].alternative_text


def test_bands_are_wilson_intervals_and_stand_only_where_images_were_counted():
    for row, entry in zip(data("ladder"), LADDER, strict=True):
        expected = wilson_interval(entry.correct, entry.examples)
        assert (row["low"], row["high"]) == pytest.approx(expected)
    assert {row["low"] for row in data("tuning")} == {None}
    assert "Wilson" not in FIGURES["tuning"].caption
    counted = charts.tuning_curves("tuning", [{**trial, "examples": 20} for trial in TUNING])
    assert "95% Wilson bands" in counted.caption


def test_a_reader_can_hover_and_filter_by_the_legend():
    for name in ("decision", "accuracy", "epsilon", "classes", "roc"):
        (chosen,) = FIGURES[name].chart["params"]
        assert (chosen["bind"], chosen["select"]["fields"]) == ("legend", ["series"])
        assert FIGURES[name].is_interactive
    assert [row["panel"] for row in data("epsilon")][::3] == ["White box", "White box"]


def test_what_was_not_measured_has_no_figure():
    nothing = Metrics(subject="sfm", clean=CLEAN)
    assert charts.epsilon_curves("epsilon", nothing, NAMES) is None
    assert charts.ladder_curve("ladder", []) is None
    assert charts.loss_curve("loss", ()) is None
    assert charts.success_curve("success", (), 20) is None
    assert charts.roc_chart("roc", {**DETECTION, "attacked": DETECTION["attacked"][3:]}, {}) is None


def test_thirty_lines_differ_and_neighbours_differ_without_colour():
    points = [Point(f"attack {place}", 0.0, 0.5) for place in range(30)]
    chart = charts.line_chart(points, *(charts.alt.X("place:Q"), charts.alt.Y("value:Q"))).to_dict()
    looks = [chart["encoding"][name]["scale"]["range"] for name in ("color", "strokeDash")]
    lines = [(colour, tuple(dash)) for colour, dash in zip(*looks, strict=True)]
    assert len(set(lines)) == 30
    assert all(a[1] != b[1] for a, b in zip(lines, lines[1:], strict=False))


def test_of_many_classes_the_worst_are_shown():
    many = [
        {"class": f"class {n}", "clean": accuracy(20), "worst_case": accuracy(n, 50)}
        for n in range(50)
    ][::-1]
    figure = charts.class_chart("classes", many)
    names = dict.fromkeys(row["place"] for row in figure.chart["data"]["values"])
    assert list(names) == [f"class {n}" for n in range(40)]
    assert "the 40 classes with the lowest worst case" in figure.caption


def test_the_map_shows_shares_of_the_true_class_and_counts():
    shares = {(row["true"], row["predicted"]): row["share"] for row in data("confusion")}
    assert shares == {
        ("cat", "cat"): pytest.approx(1 / 6),
        ("cat", "dog"): pytest.approx(5 / 6),
        ("dog", "cat"): 1.0,
        ("dog", "dog"): 0.0,
    }
    assert [row["count"] for row in data("confusion")] == [1, 5, 2, 0]


def test_classes_without_images_and_without_mistakes_are_drawn():
    counts = np.zeros((60, 60), int)
    counts[3, 3] = 4
    many = {**CONFUSION, "counts": counts.tolist()}
    figure = charts.confusion_map("many", many, [str(place) for place in range(60)], NAMES)
    assert sum(row["share"] for row in figure.chart["data"]["values"]) == 1.0
    assert "layer" not in figure.chart  # No counts in cells that are too small for them.
    assert figure.alternative_text.endswith("No image was mistaken.")


def test_the_detectors_curve_keeps_its_order_and_a_dot_marks_its_threshold():
    lines = [row for row in data("roc") if not row["is_dot"]]
    assert [row["order"] for row in lines] == list(range(6))
    (pgd,) = (row for row in data("roc") if row["is_dot"] and row["series"] == "PGD 8/255")
    assert (pgd["place"], pgd["value"]) == (0.0625, 0.75)
