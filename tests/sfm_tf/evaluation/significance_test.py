import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.results import join_results, results_rows
from sfm_tf.evaluation.significance import against_subject, exact_mcnemar, holm, paired_differences

KEYS = ("threat_model", "attack", "epsilon", "defence", "other")


def vectors(both, only_first, only_second, neither):
    """Two vectors with these numbers of images."""
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.parametrize(("first", "second"), [*itertools.product((0, 1, 3, 8, 40), repeat=2)])
def test_the_test_is_the_binomial_one_of_the_images_that_differ(first, second):
    found = exact_mcnemar(*vectors(5, first, second, 7))
    assert (found["only_first_right"], found["only_second_right"]) == (first, second)
    assert found["examples"] == 12 + first + second
    differing = first + second
    expected = stats.binomtest(first, differing, 0.5).pvalue if differing else 1.0
    assert found["p_value"] == pytest.approx(expected, rel=1e-12)
    # As the formula of textbooks, in whole numbers.
    tail = sum(math.comb(differing, k) for k in range(min(first, second) + 1))
    assert found["p_value"] == pytest.approx(min(1.0, 2 * tail / 2**differing), rel=1e-12)


def test_who_comes_first_does_not_matter():
    first, second = vectors(3, 9, 2, 1)
    there, back = exact_mcnemar(first, second), exact_mcnemar(second, first)
    assert there["p_value"] == back["p_value"]
    assert there["only_first_right"] == back["only_second_right"] == 9


def test_other_images_are_refused():
    with pytest.raises(SfmError, match=r"Invalid shapes \(2,\) and \(3,\); expected two vectors"):
        exact_mcnemar(np.ones(2, bool), np.ones(3, bool))


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 and never falling.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_stepping_down_by_hand_rejects():
    p_values = np.random.default_rng(1).random(20) ** 4
    rejected = set()
    for rank, place in enumerate(np.argsort(p_values)):
        if p_values[place] > 0.05 / (20 - rank):
            break
        rejected.add(int(place))
    found = {place for place, value in enumerate(holm(list(p_values))) if value <= 0.05}
    assert found == rejected


LABELS = np.zeros(4, int)
CLEAN = {"undefended": [0, 0, 0, 0], "sfm": [0, 0, 0, 1], "tvm": [0, 0, 0, 0]}


def rows(defence, threat_model, attack, epsilon, prediction):
    values = {
        "label": LABELS[: len(prediction)],
        "defence": defence,
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "clean_prediction": CLEAN[defence][: len(prediction)],
        "prediction": prediction,
        "linf": 0.0,
        "l2": 0.0,
        "iterations": 0,
        "loss": 0.0,
        "zero_gradient": False,
    }
    return results_rows(len(prediction), values)


def made_up_results():
    clean = [(name, "none", "clean", 0.0, values) for name, values in CLEAN.items()]
    attacks = [
        ("undefended", "white_box", "fgsm", 8.0, [1, 1, 1, 0]),
        ("undefended", "white_box", "pgd", 8.0, [1, 1, 0, 1]),
        ("sfm", "white_box", "fgsm", 8.0, [0, 0, 0, 0]),
        ("sfm", "white_box", "pgd", 8.0, [0, 0, 1, 0]),
        ("tvm", "white_box", "fgsm", 8.0, [1, 0, 0, 0]),
        ("sfm", "white_box", "fgsm", 4.0, [0, 0, 0, 0]),
        ("tvm", "white_box", "fgsm", 4.0, [0, 0, 0, 0]),
        ("sfm", "decision_based", "hop_skip_jump", 8.0, [0, 1]),
        ("tvm", "decision_based", "hop_skip_jump", 8.0, [0, 0, 0]),
        ("sfm", "white_box", "cw", np.inf, [1, 1, 1, 1]),
        ("tvm", "white_box", "cw", np.inf, [1, 1, 1, 1]),
    ]
    return join_results([rows(*made) for made in (*clean, *attacks)])


@pytest.fixture(name="entries", scope="module")
def _entries():
    found = paired_differences(made_up_results(), "sfm")
    return {tuple(entry[key] for key in KEYS): entry for entry in found}


def test_every_two_defences_are_compared_on_the_same_attack(entries):
    compared = {key[3:] for key in entries if key[:3] == ("white_box", "fgsm", 8.0)}
    assert compared == {("sfm", "undefended"), ("sfm", "tvm"), ("undefended", "tvm")}
    assert ("white_box", "pgd", 8.0, "sfm", "undefended") in entries
    assert not any(key[1] == "cw" for key in entries)
    assert len({key[:3] for key in entries if key[1] == "clean"}) == 1


def test_counts_by_hand(entries):
    entry = entries["white_box", "fgsm", 8.0, "sfm", "undefended"]
    assert (entry["only_first_right"], entry["only_second_right"]) == (3, 0)
    assert entry["p_value"] == 0.25
    # In the worst case sfm is right on images 0 and 1, the other on none.
    worst = entries["white_box", "worst_case", 8.0, "sfm", "undefended"]
    assert (worst["only_first_right"], worst["only_second_right"]) == (2, 0)
    # Against tvm, right on 1, 2 and 3, in the same case.
    worst = entries["white_box", "worst_case", 8.0, "sfm", "tvm"]
    assert (worst["only_first_right"], worst["only_second_right"]) == (1, 2)


def test_images_that_only_one_was_attacked_on_are_left_out(entries):
    entry = entries["decision_based", "hop_skip_jump", 8.0, "sfm", "tvm"]
    assert (entry["examples"], entry["only_second_right"]) == (2, 1)


def test_the_listed_pairs_are_corrected_together(entries):
    listed = against_subject(list(entries.values()), "sfm")
    assert [tuple(entry[key] for key in KEYS) for entry in listed] == [
        ("white_box", "worst_case", 8.0, "sfm", "undefended"),
        ("white_box", "worst_case", 8.0, "sfm", "tvm"),
        ("decision_based", "worst_case", 8.0, "sfm", "tvm"),
        ("all", "worst_case", None, "sfm", "undefended"),
        ("all", "worst_case", None, "sfm", "tvm"),
    ]
    expected = holm([entry["p_value"] for entry in listed])
    assert [entry["holm_p_value"] for entry in listed] == expected
    others = [entry for entry in entries.values() if entry not in listed]
    assert {entry["holm_p_value"] for entry in others} == {None}


def test_one_defence_has_nobody_to_differ_from():
    alone = join_results([rows("sfm", "none", "clean", 0.0, [0, 0, 0, 1])])
    assert paired_differences(alone, "sfm") == []
