import dataclasses
import json

import numpy as np
import pytest

from sfm_tf.artifacts.typed_json import from_json
from sfm_tf.evaluation.metrics import Metrics, break_down, confusion, per_class, summarise
from sfm_tf.evaluation.results import Scenario, join_results
from sfm_tf.evaluation.significance import wilson_interval
from tests import made_up

LABELS = np.array([0, 1, 2, 3])
CLEAN = np.array([0, 1, 2, 0])  # The last image is wrong to begin with.


def _rows(prediction, attack, epsilon, threat_model="white_box", defence="sfm", **changes):
    names = defence, threat_model, attack, epsilon
    return made_up.answers(*names, LABELS, CLEAN, np.array(prediction), **changes)


def _results():
    """By hand, for the images 0 to 3: what each attack leaves right."""
    return join_results(
        [
            _rows(CLEAN, "clean", 0.0, "none", "undefended"),
            _rows(CLEAN, "clean", 0.0, "none"),
            _rows([0, 1, 0, 3], "fgsm", 8.0, zero_gradient=np.array([True, False, False, False])),
            _rows([1, 1, 0, 0], "fgsm", 16.0),
            _rows([1, 1, 2, 0], "pgd", 8.0),
            _rows([0, 0, 2, 0], "pgd", 16.0),
            _rows([0, 1, 2, 3], "pgd", 8.0, "black_box"),
            _rows([1, 0, 0, 0], "pgd", 8.0, "white_box", "undefended"),
        ]
    )


def _find(entries, **keys):
    found = [e for e in entries if all(getattr(e, key) == value for key, value in keys.items())]
    assert len(found) == 1
    return found[0]


def test_clean_accuracy_per_defence():
    clean = summarise(_results()).clean
    assert [entry.defence for entry in clean] == ["undefended", "sfm"]
    assert clean[1].examples == 4
    assert clean[1].correct == 3
    assert clean[1].accuracy == 0.75
    # Wilson, 3 of 4 at 95 %.
    assert clean[1].accuracy_low == pytest.approx(0.3006, abs=1e-4)
    assert clean[1].accuracy_high == pytest.approx(0.9544, abs=1e-4)


@pytest.mark.parametrize(
    ("keys", "correct", "success", "zero"),
    [
        ({"attack": "fgsm", "epsilon": 8.0}, 3, 1 / 3, 0.25),
        ({"attack": "fgsm", "epsilon": 16.0}, 1, 2 / 3, 0.0),
        ({"attack": "pgd", "epsilon": 8.0}, 2, 1 / 3, 0.0),
        ({"attack": "pgd", "epsilon": 16.0}, 2, 1 / 3, 0.0),
    ],
)
def test_figures_of_each_attack(keys, correct, success, zero):
    attacks = summarise(_results()).under_attack
    entry = _find(attacks, defence="sfm", threat_model="white_box", **keys)
    assert entry.correct == correct
    assert entry.accuracy == correct / 4
    assert entry.attack_success == pytest.approx(success)
    assert entry.zero_gradient_share == zero


@pytest.mark.parametrize(
    ("threat_model", "epsilon", "correct", "strongest"),
    [
        ("white_box", 8.0, 1, "fgsm"),  # fgsm breaks image 2, pgd breaks 0: a tie, fgsm is first.
        ("white_box", 16.0, 0, "fgsm"),  # fgsm breaks 0 and 2, pgd breaks 1.
        ("white_box", None, 0, "fgsm"),
        ("black_box", 8.0, 3, None),
        ("black_box", None, 3, None),
        ("all", None, 0, "fgsm"),
    ],
)
def test_worst_case_is_per_image(threat_model, epsilon, correct, strongest):
    worst = summarise(_results()).worst_case
    entry = _find(worst, defence="sfm", threat_model=threat_model, epsilon=epsilon)
    assert (entry.correct, entry.examples) == (correct, 4)
    assert entry.strongest_attack == strongest


def test_an_image_broken_at_two_radii_counts_once_for_its_attack():
    results = join_results(
        [
            _rows(CLEAN, "clean", 0.0, "none"),
            _rows([1, 1, 2, 0], "fgsm", 8.0),
            _rows([1, 1, 2, 0], "fgsm", 16.0),
            _rows([1, 1, 2, 0], "fgsm", 32.0),
            _rows([1, 0, 2, 0], "pgd", 8.0),
        ]
    )
    entry = _find(summarise(results).worst_case, threat_model="white_box", epsilon=None)
    assert entry.strongest_attack == "pgd"


def test_defences_are_kept_apart():
    entry = _find(summarise(_results()).worst_case, defence="undefended", threat_model="all")
    assert (entry.correct, entry.strongest_attack) == (0, "pgd")


def test_a_model_that_was_never_right_has_no_attack_success():
    wrong = np.array([1, 2, 3, 0])
    rows = _rows(wrong, "pgd", 8.0)
    rows = rows.set_column(
        rows.column_names.index("clean_prediction"), rows.schema.field("clean_prediction"), [wrong]
    )
    entry = summarise(rows).under_attack[0]
    assert entry.attack_success is None
    assert entry.accuracy == 0.0


def _smallest():
    """An attack that breaks images 0 and 2, the latter only at a norm above every radius."""
    found = _rows(
        [1, 1, 3, 0],
        "cw",
        np.inf,
        linf=np.array([0.01, 0.0, 0.5, 0.0]),
        l2=np.array([0.1, 0.0, 2.0, 0.0]),
    )
    return join_results([_rows(CLEAN, "clean", 0.0, "none"), found, _rows([1, 1, 2, 0], "cw", 8.0)])


def test_smallest_perturbations_are_told_apart_from_those_at_a_radius():
    summary = summarise(_smallest())
    (entry,) = summary.minimum_norm
    assert (entry.attack, entry.examples) == ("cw", 4)
    assert entry.attack_success == pytest.approx(2 / 3)
    assert entry.median_linf == pytest.approx((0.01 + 0.5) / 2)
    assert entry.median_l2 == pytest.approx((0.1 + 2.0) / 2)
    (bounded,) = summary.under_attack
    assert (bounded.epsilon, bounded.correct) == (8.0, 2)


def test_a_perturbation_above_every_radius_is_no_worst_case():
    worst = summarise(_smallest()).worst_case
    assert {entry.epsilon for entry in worst} == {8.0, None}
    assert _find(worst, threat_model="all").correct == 2


@pytest.mark.parametrize(
    ("defences", "subject"), [(("undefended", "sfm"), "sfm"), (("model",), "model")]
)
def test_the_subject_is_the_defence_or_the_users_own_model(defences, subject):
    rows = [_rows(CLEAN, "clean", 0.0, "none", defence) for defence in defences]
    assert summarise(join_results(rows)).subject == subject


def test_the_summary_is_json():
    summary = summarise(
        join_results([_results(), _smallest()]), {Scenario("sfm", "white_box"): 0.5}
    )
    value = json.loads(json.dumps(dataclasses.asdict(summary), allow_nan=False))
    assert from_json(Metrics, value) == summary
    assert value["worst_case"][0] == {
        "defence": "sfm",
        "threat_model": "white_box",
        "epsilon": 8.0,
        "examples": 4,
        "correct": 1,
        "accuracy": 0.25,
        "accuracy_low": pytest.approx(0.0456, abs=1e-4),
        "accuracy_high": pytest.approx(0.6994, abs=1e-4),
        "strongest_attack": "fgsm",
    }
    assert value["vanished_gradients"] == [
        {"defence": "sfm", "threat_model": "white_box", "share": 0.5}
    ]


def test_clean_rows_alone_have_no_worst_case():
    summary = summarise(_rows(CLEAN, "clean", 0.0, "none"))
    assert summary.under_attack == summary.worst_case == ()


NAMES = ("cat", "dog", "fish")
BREAKDOWN_LABELS = np.array([0, 0, 0, 1, 1])  # No fish.
BREAKDOWN_CLEAN = np.array([0, 0, 1, 1, 1])


def breakdown_rows(threat_model, attack, epsilon, prediction, defence="sfm"):
    names = defence, threat_model, attack, epsilon
    return made_up.answers(*names, BREAKDOWN_LABELS, BREAKDOWN_CLEAN, prediction)


RESULTS = join_results(
    [
        breakdown_rows("none", "clean", 0.0, BREAKDOWN_CLEAN),
        breakdown_rows("none", "clean", 0.0, BREAKDOWN_CLEAN, "undefended"),
        breakdown_rows("white_box", "fgsm", 8.0, [0, 2, 2, 1, 1]),
        breakdown_rows("white_box", "pgd", 8.0, [2, 0, 0, 2, 1]),
        breakdown_rows("decision_based", "hop_skip_jump", 8.0, [2, 0]),
        breakdown_rows("white_box", "pgd", 8.0, [1, 1, 1, 0, 0], "undefended"),
        breakdown_rows("white_box", "cw", np.inf, [1, 1, 1, 0, 0]),
    ]
)


def test_accuracies_of_each_class_by_hand():
    cat, dog, fish = per_class(RESULTS, "sfm", NAMES)
    assert [entry["class"] for entry in (cat, dog, fish)] == list(NAMES)
    assert (cat["clean"]["correct"], cat["clean"]["examples"]) == (2, 3)
    assert (cat["worst_case"]["correct"], cat["worst_case"]["examples"]) == (0, 3)
    assert (dog["clean"]["correct"], dog["worst_case"]["correct"]) == (2, 1)
    low, high = wilson_interval(1, 2)
    assert dog["worst_case"]["accuracy"] == 0.5
    assert (dog["worst_case"]["accuracy_low"], dog["worst_case"]["accuracy_high"]) == (low, high)
    assert fish["clean"] is None
    assert fish["worst_case"] is None


def test_classes_add_up_to_the_headline():
    headline = summarise(RESULTS).worst("sfm")
    worst = [e["worst_case"] for e in per_class(RESULTS, "sfm", NAMES) if e["worst_case"]]
    for key in ("correct", "examples"):
        assert sum(entry[key] for entry in worst) == getattr(headline, key)


def test_the_matrix_is_of_the_attack_that_turns_most_images_wrong():
    found = confusion(RESULTS, "sfm", 3)
    # FGSM turns image 1 wrong, PGD images 0 and 3; image 2 was wrong before.
    assert (found["threat_model"], found["attack"], found["epsilon"]) == ("white_box", "pgd", 8.0)
    assert found["turned_wrong"] == 2
    assert found["counts"] == [[2, 0, 1], [0, 1, 1], [0, 0, 0]]


def test_another_defence_has_its_own_matrix():
    assert confusion(RESULTS, "undefended", 3)["counts"] == [[0, 3, 0], [2, 0, 0], [0, 0, 0]]


def test_without_an_attack_there_are_clean_accuracies_only():
    clean = join_results([breakdown_rows("none", "clean", 0.0, BREAKDOWN_CLEAN)])
    found = break_down(clean, "sfm", NAMES)
    assert found["confusion"] is None
    assert [entry["worst_case"] for entry in found["per_class"]] == [None] * 3
    assert found["per_class"][0]["clean"]["correct"] == 2


def test_json_can_hold_it():
    found = break_down(RESULTS, "sfm", NAMES)
    assert json.loads(json.dumps(found)) == found
