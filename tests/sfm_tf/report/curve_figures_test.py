import pytest

from sfm_tf.evaluation.intervals import wilson_interval
from sfm_tf.report import curve_figures
from sfm_tf.report.curve_figures import epsilon_curves, ladder_curve, loss_curves, tuning_curves

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
    monkeypatch.setattr(curve_figures, "render_figure", lambda figure, *_: drawn.append(figure))
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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
