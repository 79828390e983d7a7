"""Differences are counted by hand; McNemar's p is that of SciPy's binomial test."""

import dataclasses
import html
import json

import numpy as np
import pytest
from scipy import stats

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.audit.blessing import decide
from sfm_tf.errors import SfmError
from sfm_tf.evaluation import results
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.runner import Cost
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.report.comparison import (
    ComparedRun,
    attacks_differ,
    build_comparison,
    check_runs,
    collect_runs,
    compare_runs,
    comparison_sections,
    comparison_summary,
    differing_settings,
    seed_groups,
    seed_section,
    seed_sentences,
)
from tests import made_up

LABELS = np.array([0, 1, 0, 1, 0, 1, 0, 1])
CLEAN = "11111110"


def predictions(right: str) -> np.ndarray:
    """Returns predictions that are right where a digit is 1."""
    return np.where([digit == "1" for digit in right], LABELS[: len(right)], 9)


def rows(threat_model: str, attack: str, epsilon: float, right: str, defence: str = "sfm"):
    predicted = predictions(CLEAN), predictions(right)
    return made_up.answers(defence, threat_model, attack, epsilon, LABELS, *predicted)


def run(name: str, *attacked, clean: str = CLEAN, norm: str = "inf") -> ComparedRun:
    table = results.join_results([rows("none", "clean", 0.0, clean), *attacked])
    metrics = summarise(table)
    return ComparedRun(
        name=name,
        workdir=name,
        experiment="digits",
        images_digest="ab",
        metrics=metrics,
        results=table,
        blessing=decide(metrics, EvaluationConfig()),
        costs=(),
        manifests=[made_up.manifest("evaluate", {"evaluation": {"norm": norm}})],
    )


FIRST = run(
    "first",
    rows("white_box", "fgsm", 8.0, "11000001"),
    rows("white_box", "pgd", 8.0, "10000000"),
    rows("decision_based", "hop_skip_jump", 8.0, "110"),
)
SECOND = run(
    "second",
    rows("white_box", "fgsm", 8.0, "01111111"),
    rows("white_box", "mim", 8.0, "01111100"),
    rows("decision_based", "hop_skip_jump", 8.0, "0111"),
    rows("white_box", "fgsm", 8.0, "00000000", defence="other"),
)


def found(first: ComparedRun = FIRST, second: ComparedRun = SECOND):
    (pair,) = compare_runs([first, second])
    return {tuple(each.condition): each for each in pair.differences}


def test_an_attack_is_compared_image_by_image():
    difference = found()["white_box", "fgsm", 8.0]
    assert (difference.first_accuracy, difference.second_accuracy) == (3 / 8, 7 / 8)
    assert (difference.only_first_right, difference.only_second_right) == (1, 5)
    assert difference.examples == 8
    assert difference.difference == pytest.approx(0.5)
    assert difference.p_value == pytest.approx(stats.binomtest(1, 6, 0.5).pvalue)
    assert difference.holm_p_value is None


def test_the_worst_case_needs_the_clean_image_and_every_attack():
    # Of the first run image 0 is left, of the second images 1 to 5; the last was wrong when clean.
    difference = found()["white_box", "worst_case", None]
    assert (difference.first_accuracy, difference.second_accuracy) == (1 / 8, 5 / 8)
    assert (difference.only_first_right, difference.only_second_right) == (1, 5)


def test_attacks_of_unlike_counts_are_compared_on_the_images_that_both_saw():
    difference = found()["decision_based", "hop_skip_jump", 8.0]
    assert difference.examples == 3
    assert (difference.first_accuracy, difference.second_accuracy) == (2 / 3, 2 / 3)
    assert (difference.only_first_right, difference.only_second_right) == (1, 1)
    assert difference.p_value == 1.0


def test_what_only_one_run_has_is_there_without_a_difference():
    difference = found()["white_box", "mim", 8.0]
    assert difference.first_accuracy is None
    assert difference.second_accuracy == 5 / 8
    assert difference.difference is None
    assert difference.p_value is None
    (pair,) = compare_runs([FIRST, SECOND])
    assert attacks_differ(pair, "white_box")
    assert attacks_differ(pair, "all")
    assert not attacks_differ(pair, "decision_based")


def test_all_attackers_come_first_and_worst_cases_are_corrected_together():
    differences = list(found().values())
    assert tuple(differences[0].condition) == ("all", "worst_case", None)
    tested = [each for each in differences if each.condition.attack == "worst_case"]
    assert tested == differences[: len(tested)]
    smallest = min(tested, key=lambda each: each.p_value)
    assert smallest.holm_p_value == pytest.approx(min(1.0, len(tested) * smallest.p_value))


def test_every_two_of_three_runs_are_compared():
    third = dataclasses.replace(SECOND, name="third")
    pairs = compare_runs([FIRST, SECOND, third])
    names = [(pair.first.name, pair.second.name) for pair in pairs]
    assert names == [("first", "second"), ("first", "third"), ("second", "third")]
    assert {each.difference for each in pairs[2].differences} == {0.0}


@pytest.fixture(name="root", scope="module")
def _root(evaluation):
    return RunDirectory(evaluation.folder.parents[1])


def copy_of(root: RunDirectory, folder) -> RunDirectory:
    """Returns a second working directory whose records and evaluation are those of the first."""
    folder.mkdir()
    for stage in ("ingest", "train", "evaluate"):
        (folder / stage).symlink_to(root.root / stage)
    return RunDirectory(folder)


def test_a_stored_evaluation_is_read_with_the_stages_behind_it(root, tmp_path):
    other = copy_of(root, tmp_path / "other")
    runs = collect_runs(["a/run", "b/other"], [root, other])
    assert [each.name for each in runs] == [root.root.name, "other"]
    assert runs[0].images_digest == runs[1].images_digest
    assert runs[0].image_count == 12
    stages = [manifest.stage for manifest in runs[0].manifests]
    assert stages == ["ingest", "train", "evaluate"]
    (pair,) = compare_runs(runs)
    assert {each.p_value for each in pair.differences} == {1.0}


@pytest.mark.parametrize("workdirs", [[], ["a"], ["a", "a"]])
def test_two_different_working_directories_are_needed(root, workdirs):
    with pytest.raises(SfmError, match="give at least two different working directories"):
        collect_runs(workdirs, [root] * len(workdirs))


def test_a_directory_without_an_evaluation_says_what_to_run(root, tmp_path):
    with pytest.raises(SfmError, match="Stage evaluate has not finished"):
        collect_runs(["a", "b"], [root, RunDirectory(tmp_path)])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (run("second", clean="1111"), "they evaluated 8 and 4 images; evaluate both with the same"),
        (dataclasses.replace(SECOND, images_digest="cd"), "they evaluated different images"),
        (run("second", norm="2"), "their radii are of the norms inf and 2"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(other, message):
    with pytest.raises(SfmError, match=f"Cannot compare first with second: {message}") as raised:
        check_runs([FIRST, other])
    assert "\n" not in str(raised.value)


COUNT = 20


def made_rows(threat_model: str, attack: str, epsilon: float, correct: int):
    return made_up.rows(threat_model, attack, epsilon, correct, COUNT)


def costly_run(name: str, manifests: list[Manifest], *attacked) -> ComparedRun:
    cost = Cost(defence="sfm", images=10, seconds_per_1000_images=0.5, relative_to_undefended=1.25)
    return made_up.run(name, manifests, *attacked, count=COUNT, costs=[cost])


NARROW = costly_run(
    "one",
    [
        made_up.manifest("train", {"model": {"width": 4, "depth": 1}}),
        made_up.manifest("evaluate", {}),
    ],
    made_rows("white_box", "pgd", 8.0, 4),
)
WIDE = costly_run(
    "two",
    [
        made_up.manifest("train", {"model": {"width": 8, "depth": 1, "extra": [1]}}),
        made_up.manifest("evaluate", {}),
    ],
    made_rows("white_box", "pgd", 8.0, 10),
)


def sections(*runs: ComparedRun):
    made = comparison_sections(runs, compare_runs(runs), tuple(differing_settings(runs)))
    return {section.title: section for section in made}


def test_runs_stand_side_by_side():
    (table,) = sections(NARROW, WIDE)["Side by side"].tables
    assert table.columns == ("Figure", "one", "two")
    found = made_up.cells(table)
    assert found["Verdict"] == ["NOT_BLESSED", "BLESSED"]
    assert found["Clean accuracy of no defence"] == ["not run", "not run"]
    # Wilson intervals of 4 and 10 of 20, as published tables give them.
    assert found["Worst case, white box"] == ["20.0% (8.1–41.6), PGD", "50.0% (29.9–70.1), PGD"]
    assert found["Time to no defence"] == ["1.25", "1.25"]


def test_differences_stand_with_their_counts_and_p_values():
    worst, attacks = sections(NARROW, WIDE)["one and two"].tables
    # 6 images are right in the second run only: p is 2 / 2 ** 6, and three worst cases are tested.
    line = ["20", "20.0%", "50.0%", "+30.0", "0", "6", "0.0312"]
    assert made_up.cells(worst)["all threat models, all radii"] == [*line, "0.0938"]
    assert made_up.cells(attacks)["white box, PGD 8/255"] == line
    assert made_up.cells(attacks)["clean"] == ["20", "100.0%", "100.0%", "+0.0", "0", "0", "1.0000"]


def test_the_summary_says_the_worst_case_first():
    first, last = comparison_summary([NARROW, WIDE], compare_runs([NARROW, WIDE]))
    assert first == (
        "After every attack one is right on 20.0% and two on 50.0% of 20 images: +30.0 points, "
        "exact McNemar p = 0.0312."
    )
    assert last == "All runs were evaluated on the same 20 test images, SHA-256 abababababababab."


def test_runs_that_were_not_attacked_alike_say_so():
    other = costly_run("three", NARROW.manifests, made_rows("white_box", "fgsm", 8.0, 12))
    section = sections(NARROW, other)["one and three"]
    assert any("attacked differently (white box)" in text for text in section.paragraphs)
    found = made_up.cells(section.tables[1])
    assert found["white box, PGD 8/255"] == ["20", "20.0%", *["not run"] * 5]
    first, _ = comparison_summary([NARROW, other], compare_runs([NARROW, other]))
    assert first.endswith("They were attacked differently.")


def test_only_settings_that_differ_are_listed():
    (table,) = sections(NARROW, WIDE)["Settings that differ"].tables
    assert made_up.cells(table) == {
        "train: model.width": ["4", "8"],
        "train: model.extra": ["no such setting", "[1]"],
    }


def test_no_setting_that_differs_is_said_in_words():
    twin = dataclasses.replace(NARROW, name="twin")
    section = sections(NARROW, twin)["Settings that differ"]
    assert section.tables == ()
    assert section.paragraphs == ("All settings, seeds and versions are the same.",)


def seeded_run(
    name: str,
    correct: int,
    train_seed: int,
    seed: int = 0,
    iterations: int = 30,
    squares: int = 3,
) -> ComparedRun:
    manifests = [
        made_up.manifest("train", {"training": {"epochs": 2}}, train_seed),
        made_up.manifest("evaluate", {"evaluation": {"iterations": iterations}}, seed),
    ]
    attacked = [
        made_up.rows("white_box", "pgd", 8.0, correct, COUNT),
        made_up.rows("decision_based", "hop_skip_jump", 8.0, squares, 4),
    ]
    return made_up.run(name, manifests, *attacked, count=COUNT)


# 20 %, 50 % and 80 % of 20 images: a mean of 50 % and, with squares of 30 points, 30 points.
RUNS = [
    seeded_run("a", 4, 0, squares=1),
    seeded_run("b", 10, 1, squares=4),
    seeded_run("c", 16, 2, squares=4),
]


def test_mean_deviation_and_ends_are_those_of_numpy_and_by_hand():
    (group,) = seed_groups(RUNS)
    found = {tuple(spread.condition): spread for spread in group.spreads}
    values = [4 / 20, 10 / 20, 16 / 20]
    pgd = found["white_box", "pgd", 8.0]
    assert (pgd.minimum, pgd.maximum) == (0.2, 0.8)
    assert pgd.mean == pytest.approx(np.mean(values)) == pytest.approx(0.5)
    assert pgd.standard_deviation == pytest.approx(np.std(values, ddof=1)) == pytest.approx(0.3)
    clean = found["none", "clean", 0.0]
    assert (clean.mean, clean.standard_deviation) == (1.0, 0.0)
    # Four images were attacked; 1, 4 and 4 of them were right: 25 %, 100 % and 100 %.
    decided = found["decision_based", "hop_skip_jump", 8.0]
    assert decided.mean == pytest.approx(0.75)
    assert decided.standard_deviation == pytest.approx(np.sqrt(0.1875))


def test_the_worst_case_of_all_attackers_comes_first_and_every_row_of_the_metrics_is_there():
    (group,) = seed_groups(RUNS)
    conditions = [tuple(spread.condition) for spread in group.spreads]
    assert conditions[0] == ("all", "worst_case", None)
    assert set(conditions) == {
        ("all", "worst_case", None),
        ("white_box", "worst_case", None),
        ("white_box", "worst_case", 8.0),
        ("decision_based", "worst_case", None),
        ("decision_based", "worst_case", 8.0),
        ("none", "clean", 0.0),
        ("white_box", "pgd", 8.0),
        ("decision_based", "hop_skip_jump", 8.0),
    }


def test_runs_that_differ_in_anything_else_are_apart():
    other = seeded_run("other", 4, 3, iterations=31)
    assert seed_groups([RUNS[0], other]) == ()
    newer = dataclasses.replace(RUNS[1].manifests[0], code_version="1" * 64)
    updated = dataclasses.replace(RUNS[1], manifests=[newer, RUNS[1].manifests[1]])
    assert seed_groups([RUNS[0], updated]) == ()
    twin = seeded_run("twin", 8, 4, iterations=31)
    groups = seed_groups([RUNS[0], other, RUNS[1], twin])
    assert [[each.name for each in group.runs] for group in groups] == [
        ["a", "b"],
        ["other", "twin"],
    ]


def test_the_same_run_again_is_no_further_seed():
    again = dataclasses.replace(RUNS[0], name="again")
    assert seed_groups([RUNS[0], again]) == ()
    (group,) = seed_groups([RUNS[0], again, RUNS[1]])
    assert [each.name for each in group.runs] == ["a", "b"]


def test_a_page_says_whose_seed_differs_and_shows_every_spread():
    (group,) = seed_groups(RUNS)
    section = seed_section(group)
    assert section.title == "Spread over the seeds of a, b, c"
    assert section.paragraphs[0] == (
        "These runs differ in nothing but the seed of train: a has 0; b has 1; c has 2."
    )
    (table,) = section.tables
    cells = made_up.cells(table)
    assert len(table.columns) == 5
    assert cells["white box, PGD 8/255"] == ["50.0%", "30.0", "20.0%", "80.0%"]
    assert cells["decision-based, HopSkipJump 8/255"] == ["75.0%", "43.3", "25.0%", "100.0%"]
    both = seed_section(*seed_groups([seeded_run("a", 4, 0, 5), seeded_run("b", 10, 1, 6)]))
    assert both.paragraphs[0] == (
        "These runs differ in nothing but the seed of train and evaluate: a has 0, 5; b has 1, 6."
    )


def test_the_summary_tells_the_worst_case_of_each_group():
    runs = [
        seeded_run("a", 4, 0, squares=4),
        seeded_run("b", 10, 1, squares=4),
        seeded_run("c", 16, 2, squares=4),
    ]
    (sentence,) = seed_sentences(seed_groups(runs))
    assert sentence == (
        "Over 3 seeds (a, b, c) the accuracy after every attack is 50.0% in the mean, with a "
        "standard deviation of 30.0 points, from 20.0% to 80.0%."
    )
    assert list(seed_sentences(())) == []


HOSTILE = "<script>alert('x')</script>|`a`*b*[c](d)&"
FEW = 4


def small_run(name: str, correct: int, seed: int = 0, iterations: int | None = None) -> ComparedRun:
    config = {"evaluation": {"iterations": correct if iterations is None else iterations}}
    attacked = made_up.rows("white_box", "pgd", 8.0, correct, FEW)
    manifests = [made_up.manifest("evaluate", config, seed)]
    return made_up.run(name, manifests, attacked, count=FEW)


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    build_comparison([small_run(HOSTILE, 1), small_run("two", 3)], folder)
    return folder


def test_json_holds_runs_differences_and_settings(folder):
    value = json.loads((folder / "compare.json").read_text("utf-8"))
    assert value["schema_version"] == 1
    assert value["images"] == {"count": FEW, "sha256": "ab" * 32}
    assert [each["name"] for each in value["runs"]] == [HOSTILE, "two"]
    assert value["spreads"] == []
    assert value["settings"] == [{"setting": "evaluate: evaluation.iterations", "values": [1, 3]}]
    (pair,) = value["pairs"]
    (attack,) = (each for each in pair["differences"] if each["attack"] == "pgd")
    assert attack == {
        "threat_model": "white_box",
        "attack": "pgd",
        "epsilon": 8.0,
        "examples": FEW,
        "first_accuracy": 0.25,
        "second_accuracy": 0.75,
        "difference": 0.5,
        "only_first_right": 0,
        "only_second_right": 2,
        "p_value": 0.5,
        "holm_p_value": None,
    }


def test_runs_of_several_seeds_have_their_spread_on_every_page(tmp_path):
    value = build_comparison(
        [small_run("a", 1, 0, 9), small_run("b", 2, 1, 9), small_run("c", 3, 2, 9)], tmp_path
    )
    (group,) = value["spreads"]
    assert (group["runs"], group["stages"]) == (["a", "b", "c"], ["evaluate"])
    (row,) = (each for each in group["rows"] if each["attack"] == "pgd")
    # 25 %, 50 % and 75 %: squares of 25 points twice, over two.
    assert row == {
        "threat_model": "white_box",
        "attack": "pgd",
        "epsilon": 8.0,
        "mean": 0.5,
        "standard_deviation": 0.25,
        "minimum": 0.25,
        "maximum": 0.75,
    }
    assert value["summary"][-1].startswith("Over 3 seeds (a, b, c)")
    for name in ("compare.html", "compare.md"):
        text = (tmp_path / name).read_text("utf-8")
        assert text.index("Spread over the seeds of a, b, c") < text.index("a and b")
        assert value["summary"][-1] in text


def test_pages_show_names_but_no_mark_up_of_them(folder):
    for name in ("compare.html", "compare.md"):
        text = (folder / name).read_text("utf-8")
        assert "<script>alert" not in text
        assert HOSTILE in html.unescape(text)
        assert "+50.0" in text
    assert "[c](d)" not in (folder / "compare.md").read_text("utf-8")


def test_the_returned_value_is_the_one_that_is_written(folder, tmp_path):
    value = build_comparison([small_run(HOSTILE, 1), small_run("two", 3)], tmp_path)
    assert json.loads(json.dumps(value)) == json.loads((folder / "compare.json").read_text("utf-8"))
    for name in ("compare.json", "compare.md", "compare.html"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
