import dataclasses

import pytest

from sfm_tf import testing
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.evaluation.right_answers import Condition
from sfm_tf.report.comparison import ComparedRun, compare_runs
from sfm_tf.report.comparison_sections import (
    comparison_sections,
    comparison_summary,
    condition_name,
    differing_settings,
)

COUNT = 20


def rows(threat_model: str, attack: str, epsilon: float, correct: int):
    return testing.made_up_rows(threat_model, attack, epsilon, correct, COUNT)


def run(name: str, manifests: list[Manifest], *attacked) -> ComparedRun:
    cost = {"defence": "sfm", "seconds_per_1000_images": 0.5, "relative_to_undefended": 1.25}
    return testing.made_up_run(name, manifests, *attacked, count=COUNT, costs=[cost])


FIRST = run(
    "one",
    [
        testing.made_up_manifest("train", {"model": {"width": 4, "depth": 1}}),
        testing.made_up_manifest("evaluate", {}),
    ],
    rows("white_box", "pgd", 8.0, 4),
)
SECOND = run(
    "two",
    [
        testing.made_up_manifest("train", {"model": {"width": 8, "depth": 1, "extra": [1]}}),
        testing.made_up_manifest("evaluate", {}),
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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
