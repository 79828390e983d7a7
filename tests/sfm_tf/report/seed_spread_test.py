"""Means and deviations are those of NumPy, and of a few lines by hand."""

import dataclasses

import numpy as np
import pytest

from sfm_tf import testing
from sfm_tf.report.comparison import ComparedRun
from sfm_tf.report.seed_spread import seed_groups, seed_section, seed_sentences

COUNT = 20


def run(
    name: str,
    correct: int,
    train_seed: int,
    seed: int = 0,
    iterations: int = 30,
    squares: int = 3,
) -> ComparedRun:
    manifests = [
        testing.made_up_manifest("train", {"training": {"epochs": 2}}, train_seed),
        testing.made_up_manifest("evaluate", {"evaluation": {"iterations": iterations}}, seed),
    ]
    attacked = [
        testing.made_up_rows("white_box", "pgd", 8.0, correct, COUNT),
        testing.made_up_rows("decision_based", "hop_skip_jump", 8.0, squares, 4),
    ]
    return testing.made_up_run(name, manifests, *attacked, count=COUNT)


# 20 %, 50 % and 80 % of 20 images: a mean of 50 % and, with squares of 30 points, 30 points.
RUNS = [run("a", 4, 0, squares=1), run("b", 10, 1, squares=4), run("c", 16, 2, squares=4)]


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
    other = run("other", 4, 3, iterations=31)
    assert seed_groups([RUNS[0], other]) == ()
    newer = dataclasses.replace(RUNS[1].manifests[0], code_version="1" * 64)
    updated = dataclasses.replace(RUNS[1], manifests=[newer, RUNS[1].manifests[1]])
    assert seed_groups([RUNS[0], updated]) == ()
    twin = run("twin", 8, 4, iterations=31)
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
    both = seed_section(*seed_groups([run("a", 4, 0, 5), run("b", 10, 1, 6)]))
    assert both.paragraphs[0] == (
        "These runs differ in nothing but the seed of train and evaluate: a has 0, 5; b has 1, 6."
    )


def test_the_summary_tells_the_worst_case_of_each_group():
    runs = [run("a", 4, 0, squares=4), run("b", 10, 1, squares=4), run("c", 16, 2, squares=4)]
    (sentence,) = seed_sentences(seed_groups(runs))
    assert sentence == (
        "Over 3 seeds (a, b, c) the accuracy after every attack is 50.0% in the mean, with a "
        "standard deviation of 30.0 points, from 20.0% to 80.0%."
    )
    assert list(seed_sentences(())) == []


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
