import dataclasses

from sfm_tf.evaluation.metrics import CleanAccuracy, Metrics, MinimumNorm
from sfm_tf.report import tables
from sfm_tf.report.tables import Cell, Row, Table, ablation_table, largest_radii
from tests import made_up


def figures(correct: int) -> dict:
    return made_up.accuracy(correct, 200)


METRICS = Metrics(
    subject="sfm",
    clean=(
        CleanAccuracy(defence="undefended", **figures(190)),
        CleanAccuracy(defence="sfm", **figures(180)),
    ),
    under_attack=(
        made_up.attacked("white_box", "pgd", 8.0, figures(41)),
        made_up.attacked("gray_box", "mim", 8.0, figures(100)),
    ),
    worst_case=(
        made_up.worst("white_box", 8.0, figures(40)),
        made_up.worst("white_box", None, figures(39), attack=None),
        made_up.worst("all", None, figures(38), attack="fgsm"),
    ),
)


def test_accuracies_stand_in_the_columns_of_their_attack_and_radius():
    table = tables.accuracy_table(METRICS, "white_box", "White box", (8.0, 16.0))
    assert table.title == "White box"
    assert table.columns == (
        "Defence",
        "clean",
        "PGD 8/255",
        "PGD 16/255",
        "worst case 8/255",
        "worst case 16/255",
    )
    # Wilson intervals, as SciPy gives them.
    assert made_up.cells(table) == {
        "no defence": ["95.0% (91.0–97.3)", *["not run"] * 4],
        "SFM-Defence": [
            "90.0% (85.1–93.4)",
            "20.5% (15.5–26.6)",
            "not run",
            "20.0% (15.0–26.1), PGD",
            "not run",
        ],
    }


def test_a_threat_model_that_was_not_run_says_so_in_every_cell():
    table = tables.accuracy_table(METRICS, "black_box", "Black box", (8.0,))
    after_clean = [str(cell) for row in table.rows for cell in row.cells[1:]]
    assert table.columns[2:4] == ("FGSM 8/255", "PGD 8/255")
    assert after_clean == ["not run"] * 6


def test_only_defences_that_were_measured_have_rows():
    names = ("model", "jpeg+blur")
    clean = tuple(CleanAccuracy(defence=name, **figures(180)) for name in names)
    metrics = Metrics(subject="model", clean=clean)
    table = tables.accuracy_table(metrics, "white_box", "White box", (8.0,))
    cells = ["90.0% (85.1–93.4)", *["not run"] * 3]
    assert made_up.cells(table) == {"own model": cells, "jpeg+blur": cells}


def test_smallest_perturbations_are_told_in_the_units_of_a_pixel():
    key = {"threat_model": "white_box", "attack": "cw", **figures(50)}
    found = {"attack_success": 0.75, "median_linf": 5.1 / 255, "median_l2": 0.1234}
    none = {"attack_success": 0.0, "median_linf": None, "median_l2": None}
    metrics = dataclasses.replace(
        METRICS,
        minimum_norm=(
            MinimumNorm(defence="sfm", **key, **found),
            MinimumNorm(defence="undefended", **key, **none),
        ),
    )
    table = tables.minimum_norm_table(metrics, "white_box")
    assert made_up.cells(table) == {
        "SFM-Defence, CW": ["200", "75.0%", "5.10", "0.123"],
        "no defence, CW": ["200", "0.0%", "none", "none"],
    }
    assert tables.minimum_norm_table(metrics, "black_box") is None


def test_worst_cases_of_each_threat_model_and_of_all():
    names = {"black_box": "black box", "white_box": "white box"}
    table = tables.worst_case_table(METRICS, names)
    assert table.columns == ("Defence", "black box", "white box", "all threat models")
    assert made_up.cells(table)["SFM-Defence"] == [
        "not run",
        "19.5% (14.6–25.5), no attack worked",
        "19.0% (14.2–25.0), FGSM",
    ]


def test_text_is_aligned_with_labels_to_the_left_and_figures_to_the_right():
    rows = (
        Row("a", (Cell("1"), Cell("not run"))),
        Row("longer", (Cell("22.5%", "(1.0–3.0)", "PGD"), Cell("4"))),
    )
    text = tables.render_text(Table("Title", ("Head", "x", "second"), rows))
    assert text.splitlines() == [
        "Title",
        "Head                       x   second",
        "------  --------------------  -------",
        "a                          1  not run",
        "longer  22.5% (1.0–3.0), PGD        4",
    ]


def test_words_are_read_from_the_left_and_figures_from_the_right():
    rows = [("a", "12.5%", "pass", "≥ 3"), ("b", "not run", "fail", "+1.0"), ("c", "1", "7", "<1")]
    table = tables.plain_table("T", ("Name", "x", "y", "z"), rows)
    assert [table.is_text(place) for place in range(4)] == [True, False, True, False]


def test_transposing_exchanges_rows_and_columns():
    table = tables.plain_table("T", ("Name", "a", "b"), [("r", 1, 2), ("s", 3, 4), ("t", 5, 6)])
    assert table.transposed() == tables.plain_table(
        "T", ("Name", "r", "s", "t"), [("a", 1, 3, 5), ("b", 2, 4, 6)]
    )
    assert table.transposed().transposed() == table


COMPLETE = {
    "words": "complete",
    "clean": 0.9,
    "black_box": 0.5,
    "gray_box": None,
    "examples": 1000,
    "epsilon": 8.0,
    "mask_mean": 0.5,
    "mask_spread": 0.25,
    "collapse": "",
    "failure": "",
}
ZEROS = {
    **COMPLETE,
    "words": "no reconstruction loss",
    "clean": 0.1,
    "collapse": "The mask collapsed to zeros (mean 0.001, spread 0.000): raise semantic_weight.",
}
FAILED = {
    **dict.fromkeys(COMPLETE),
    "words": "no semantic loss",
    "failure": "mask_loss became nan.",
    "collapse": "",
}


def test_every_training_has_its_accuracies_and_its_masks():
    table = ablation_table([COMPLETE, ZEROS])
    assert "on 1,000 validation images, clean and under PGD at 8/255" in table.title
    complete, zeros = table.rows
    assert complete.label == "complete"
    # Wilson's interval of 900 and of 500 in 1,000.
    assert [str(cell) for cell in complete.cells] == [
        "90.0% (88.0–91.7)",
        "50.0% (46.9–53.1)",
        "not run",
        "0.500",
        "0.250",
    ]
    assert str(zeros.cells[3]) == "0.500, The mask collapsed to zeros"


def test_a_training_that_failed_says_why_and_has_no_figures():
    (row,) = ablation_table([FAILED]).rows
    assert [str(cell) for cell in row.cells] == ["failed, mask_loss became nan.", *["not run"] * 4]
    assert len(row.cells) == len(ablation_table([FAILED]).columns) - 1


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
    table = tables.detection_table(SUMMARY, NAMES, "Detection")
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
    table = tables.detection_table(SUMMARY, {"gray_box": "gray box"}, "Detection")
    assert table.rows == ()


def test_the_threshold_is_told_with_what_it_flags_of_clean_images():
    table = tables.operating_point_table(SUMMARY)
    assert made_up.cells(table) == {
        "threshold, of scores from 0 to 2": ["1.142"],
        "false positives allowed": ["5.0%"],
        "false positives on validation images": ["5.0% (4.1–6.0)"],
        "false positives on test images": ["6.1% (4.8–7.8)"],
    }


def test_what_was_not_measured_says_so():
    assert str(tables.rate_cell(None)) == "not run"
    assert str(tables.rate_cell(NOBODY)) == "no success"


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
