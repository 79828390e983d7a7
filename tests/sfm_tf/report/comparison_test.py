"""Differences are counted by hand; McNemar's p is that of SciPy's binomial test."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.audit.blessing import decide
from sfm_tf.errors import SfmError
from sfm_tf.evaluation import results
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.report.comparison import (
    ComparedRun,
    attacks_differ,
    check_runs,
    collect_runs,
    compare_runs,
)

LABELS = np.array([0, 1, 0, 1, 0, 1, 0, 1])
CLEAN = "11111110"


def predictions(right: str) -> np.ndarray:
    """Returns predictions that are right where a digit is 1."""
    return np.where([digit == "1" for digit in right], LABELS[: len(right)], 9)


def rows(threat_model: str, attack: str, epsilon: float, right: str, defence: str = "sfm"):
    values = {
        "label": LABELS[: len(right)],
        "defence": defence,
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "clean_prediction": predictions(CLEAN[: len(right)]),
        "prediction": predictions(right),
        "linf": 0.03,
        "l2": 0.1,
        "iterations": 3,
        "loss": 0.5,
        "zero_gradient": False,
    }
    return results.results_rows(len(right), values)


def run(name: str, *attacked, clean: str = CLEAN, norm: str = "inf") -> ComparedRun:
    table = results.join_results([rows("none", "clean", 0.0, clean), *attacked])
    metrics = summarise(table)
    manifest = Manifest(
        stage="evaluate",
        fingerprint="cd" * 32,
        config={"evaluation": {"norm": norm}},
        seed=0,
        inputs={},
        content="0a",
        code_version="0" * 64,
        package_versions={},
        started="2025-01-02T03:04:05+00:00",
        wall_seconds=1.0,
    )
    return ComparedRun(
        name=name,
        workdir=name,
        experiment="digits",
        images_digest="ab",
        metrics=metrics.to_json(),
        results=table,
        blessing=decide(metrics, EvaluationConfig()),
        costs=(),
        manifests=[manifest],
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
