import dataclasses

import numpy as np
import pytest

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.evaluation.paired_answers import Condition
from sfm_tf.report.comparison import ComparedRun, compare_runs
from sfm_tf.report.comparison_sections import (
    comparison_sections,
    comparison_summary,
    condition_name,
    differing_settings,
    seed_groups,
    seed_section,
    seed_sentences,
)
from tests import made_up

COUNT = 20


def rows(threat_model: str, attack: str, epsilon: float, correct: int):
    return made_up.rows(threat_model, attack, epsilon, correct, COUNT)


def run(name: str, manifests: list[Manifest], *attacked) -> ComparedRun:
    cost = {"defence": "sfm", "seconds_per_1000_images": 0.5, "relative_to_undefended": 1.25}
    return made_up.run(name, manifests, *attacked, count=COUNT, costs=[cost])


FIRST = run(
    "one",
    [
        made_up.manifest("train", {"model": {"width": 4, "depth": 1}}),
        made_up.manifest("evaluate", {}),
    ],
    rows("white_box", "pgd", 8.0, 4),
)
SECOND = run(
    "two",
    [
        made_up.manifest("train", {"model": {"width": 8, "depth": 1, "extra": [1]}}),
        made_up.manifest("evaluate", {}),
    ],
    rows("white_box", "pgd", 8.0, 10),
)


def sections(*runs: ComparedRun):
    made = comparison_sections(runs, compare_runs(runs), tuple(differing_settings(runs)))
    return {section.title: section for section in made}


def cells(table) -> dict[str, list[str]]:
    return {row.label: [str(cell) for cell in row.cells] for row in table.rows}


def test_runs_stand_side_by_side():
    (table,) = sections(FIRST, SECOND)["Side by side"].tables
    assert table.columns == ("Figure", "one", "two")
    found = cells(table)
    assert found["Verdict"] == ["NOT_BLESSED", "BLESSED"]
    assert found["Clean accuracy of no defence"] == ["not run", "not run"]
    # Wilson intervals of 4 and 10 of 20, as published tables give them.
    assert found["Worst case, white box"] == ["20.0% (8.1–41.6)", "50.0% (29.9–70.1)"]
    assert found["Time to no defence"] == ["1.25", "1.25"]


def test_differences_stand_with_their_counts_and_p_values():
    worst, attacks = sections(FIRST, SECOND)["one and two"].tables
    # 6 images are right in the second run only: p is 2 / 2 ** 6, and three worst cases are tested.
    line = ["20", "20.0%", "50.0%", "+30.0", "0", "6", "0.0312"]
    assert cells(worst)["all threat models, all radii"] == [*line, "0.0938"]
    assert cells(attacks)["white box, PGD 8/255"] == line
    assert cells(attacks)["clean"] == ["20", "100.0%", "100.0%", "+0.0", "0", "0", "1.0000"]


def test_the_summary_says_the_worst_case_first():
    first, last = comparison_summary([FIRST, SECOND], compare_runs([FIRST, SECOND]))
    assert first == (
        "After every attack one is right on 20.0% and two on 50.0% of 20 images: +30.0 points, "
        "exact McNemar p = 0.0312."
    )
    assert last == "All are of the same 20 test images, SHA-256 abababababababab."


def test_runs_that_were_not_attacked_alike_say_so():
    other = run("three", FIRST.manifests, rows("white_box", "fgsm", 8.0, 12))
    section = sections(FIRST, other)["one and three"]
    assert any("not attacked alike (white box)" in text for text in section.paragraphs)
    found = cells(section.tables[1])
    assert found["white box, PGD 8/255"] == ["20", "20.0%", *["not run"] * 5]
    first, _ = comparison_summary([FIRST, other], compare_runs([FIRST, other]))
    assert first.endswith("They were not attacked alike.")


def test_only_settings_that_differ_are_listed():
    (table,) = sections(FIRST, SECOND)["Settings that differ"].tables
    assert cells(table) == {
        "train: model.width": ["4", "8"],
        "train: model.extra": ["no such setting", "[1]"],
    }


def test_no_setting_that_differs_is_said_in_words():
    twin = dataclasses.replace(FIRST, name="twin")
    section = sections(FIRST, twin)["Settings that differ"]
    assert section.tables == ()
    assert section.paragraphs == ("All settings, seeds and versions are the same.",)


@pytest.mark.parametrize(
    ("condition", "name"),
    [
        (Condition("none", "clean", 0.0), "clean"),
        (Condition("all", "worst_case", None), "all threat models, all radii"),
        (Condition("black_box", "worst_case", 8.0), "black box, 8/255"),
        (Condition("white_box", "apgd_ce", 2.5), "white box, APGD-CE 2.5/255"),
    ],
)
def test_conditions_are_told_in_words(condition, name):
    assert condition_name(condition) == name


SEED_SPREAD_COUNT = 20


def seed_spread_run(
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
        made_up.rows("white_box", "pgd", 8.0, correct, SEED_SPREAD_COUNT),
        made_up.rows("decision_based", "hop_skip_jump", 8.0, squares, 4),
    ]
    return made_up.run(name, manifests, *attacked, count=SEED_SPREAD_COUNT)


# 20 %, 50 % and 80 % of 20 images: a mean of 50 % and, with squares of 30 points, 30 points.
RUNS = [
    seed_spread_run("a", 4, 0, squares=1),
    seed_spread_run("b", 10, 1, squares=4),
    seed_spread_run("c", 16, 2, squares=4),
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
    other = seed_spread_run("other", 4, 3, iterations=31)
    assert seed_groups([RUNS[0], other]) == ()
    newer = dataclasses.replace(RUNS[1].manifests[0], code_version="1" * 64)
    updated = dataclasses.replace(RUNS[1], manifests=[newer, RUNS[1].manifests[1]])
    assert seed_groups([RUNS[0], updated]) == ()
    twin = seed_spread_run("twin", 8, 4, iterations=31)
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
    cells = {row.label: [str(cell) for cell in row.cells] for row in table.rows}
    assert len(table.columns) == 5
    assert cells["white box, PGD 8/255"] == ["50.0%", "30.0", "20.0%", "80.0%"]
    assert cells["decision-based, HopSkipJump 8/255"] == ["75.0%", "43.3", "25.0%", "100.0%"]
    both = seed_section(
        *seed_groups([seed_spread_run("a", 4, 0, 5), seed_spread_run("b", 10, 1, 6)])
    )
    assert both.paragraphs[0] == (
        "These runs differ in nothing but the seed of train and evaluate: a has 0, 5; b has 1, 6."
    )


def test_the_summary_tells_the_worst_case_of_each_group():
    runs = [
        seed_spread_run("a", 4, 0, squares=4),
        seed_spread_run("b", 10, 1, squares=4),
        seed_spread_run("c", 16, 2, squares=4),
    ]
    (sentence,) = seed_sentences(seed_groups(runs))
    assert sentence == (
        "Over 3 seeds (a, b, c) the accuracy after every attack is 50.0% in the mean, with a "
        "standard deviation of 30.0 points, from 20.0% to 80.0%."
    )
    assert list(seed_sentences(())) == []
