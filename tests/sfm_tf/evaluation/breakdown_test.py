import json

import numpy as np
import pytest

from sfm_tf.evaluation.breakdown import break_down, confusion, per_class
from sfm_tf.evaluation.intervals import wilson_interval
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.results import join_results, results_rows

NAMES = ("cat", "dog", "fish")
LABELS = np.array([0, 0, 0, 1, 1])  # No fish.
CLEAN = np.array([0, 0, 1, 1, 1])


def rows(threat_model, attack, epsilon, prediction, defence="sfm"):
    count = len(prediction)
    values = {
        "label": LABELS[:count],
        "defence": defence,
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "clean_prediction": CLEAN[:count],
        "prediction": prediction,
        "linf": 0.0,
        "l2": 0.0,
        "iterations": 0,
        "loss": 0.0,
        "zero_gradient": False,
    }
    return results_rows(count, values)


RESULTS = join_results(
    [
        rows("none", "clean", 0.0, CLEAN),
        rows("none", "clean", 0.0, CLEAN, "undefended"),
        rows("white_box", "fgsm", 8.0, [0, 2, 2, 1, 1]),
        rows("white_box", "pgd", 8.0, [2, 0, 0, 2, 1]),
        rows("decision_based", "hop_skip_jump", 8.0, [2, 0]),
        rows("white_box", "pgd", 8.0, [1, 1, 1, 0, 0], "undefended"),
        rows("white_box", "cw", np.inf, [1, 1, 1, 0, 0]),
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
    metrics = summarise(RESULTS)
    (headline,) = (
        entry
        for entry in metrics["worst_case"]
        if (entry["defence"], entry["threat_model"]) == ("sfm", "all")
    )
    worst = [e["worst_case"] for e in per_class(RESULTS, "sfm", NAMES) if e["worst_case"]]
    for key in ("correct", "examples"):
        assert sum(entry[key] for entry in worst) == headline[key]


def test_the_matrix_is_of_the_attack_that_turns_most_images_wrong():
    found = confusion(RESULTS, "sfm", 3)
    # FGSM turns image 1 wrong, PGD images 0 and 3; image 2 was wrong before.
    assert (found["threat_model"], found["attack"], found["epsilon"]) == ("white_box", "pgd", 8.0)
    assert found["turned_wrong"] == 2
    assert found["counts"] == [[2, 0, 1], [0, 1, 1], [0, 0, 0]]


def test_another_defence_has_its_own_matrix():
    assert confusion(RESULTS, "undefended", 3)["counts"] == [[0, 3, 0], [2, 0, 0], [0, 0, 0]]


def test_without_an_attack_there_are_clean_accuracies_only():
    clean = join_results([rows("none", "clean", 0.0, CLEAN)])
    found = break_down(clean, "sfm", NAMES)
    assert found["confusion"] is None
    assert [entry["worst_case"] for entry in found["per_class"]] == [None] * 3
    assert found["per_class"][0]["clean"]["correct"] == 2


def test_json_can_hold_it():
    found = break_down(RESULTS, "sfm", NAMES)
    assert json.loads(json.dumps(found)) == found


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
