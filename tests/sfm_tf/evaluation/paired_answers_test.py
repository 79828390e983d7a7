import numpy as np
import pytest

from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.paired_answers import (
    NOT_ATTACKED,
    RIGHT,
    UNATTACKED,
    Condition,
    against_subject,
    paired_differences,
    right_answers,
    worst_answers,
)
from sfm_tf.evaluation.results import join_results
from sfm_tf.evaluation.significance import holm
from tests import made_up

KEYS = ("threat_model", "attack", "epsilon", "defence", "other")


COUNT = 40
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, COUNT)
CLEAN = {name: RANDOM.integers(0, 3, COUNT) for name in ("undefended", "sfm")}


def rows(defence, threat_model, attack, epsilon, prediction, labels=LABELS, clean=CLEAN):
    names = defence, threat_model, attack, epsilon
    return made_up.answers(*names, labels, clean[defence], prediction)


def made_up_results():
    """Two defences; the decision-based attacker saw the first ten images only."""
    attacks = [
        (defence, threat_model, attack, epsilon, RANDOM.integers(0, 3, count))
        for defence in CLEAN
        for threat_model, attack, count in (
            ("white_box", "fgsm", COUNT),
            ("white_box", "pgd", COUNT),
            ("gray_box", "pgd", COUNT),
            ("decision_based", "hop_skip_jump", 10),
        )
        for epsilon in (8.0, 16.0)
    ]
    smallest = ("sfm", "white_box", "cw", np.inf, RANDOM.integers(0, 3, COUNT))
    clean = [(name, "none", "clean", 0.0, values) for name, values in CLEAN.items()]
    return join_results([rows(*made) for made in (*clean, *attacks, smallest)])


def test_conditions_are_those_that_were_run_in_their_order():
    answers = right_answers(made_up_results())
    assert next(iter(answers)) == UNATTACKED
    assert len(answers) == 1 + 4 * 2
    assert list(answers)[1] == Condition("white_box", "fgsm", 8.0)
    assert all(list(defences) == ["undefended", "sfm"] for defences in answers.values())


def test_an_answer_is_right_where_the_prediction_is_the_label():
    answers = right_answers(made_up_results())[UNATTACKED]
    for name, predictions in CLEAN.items():
        np.testing.assert_array_equal(answers[name] == RIGHT, predictions == LABELS)


def test_rows_in_another_order_give_the_same_answers():
    results = made_up_results()
    shuffled = right_answers(results.take(RANDOM.permutation(results.num_rows)))
    for condition, defences in right_answers(results).items():
        for defence, values in defences.items():
            np.testing.assert_array_equal(shuffled[condition][defence], values)


def test_an_image_that_was_not_attacked_is_neither_right_nor_wrong():
    answers = right_answers(made_up_results())
    few = answers[Condition("decision_based", "hop_skip_jump", 8.0)]["sfm"]
    assert np.all(few[10:] == NOT_ATTACKED)
    assert np.all(few[:10] != NOT_ATTACKED)


def test_worst_cases_are_those_of_the_metrics():
    results = made_up_results()
    worst = worst_answers(right_answers(results))
    entries = summarise(results).worst_case
    assert sum(map(len, worst.values())) == len(entries)
    for entry in entries:
        condition = Condition(entry.threat_model, "worst_case", entry.epsilon)
        values = worst[condition][entry.defence]
        assert np.sum(values != NOT_ATTACKED) == entry.examples
        assert np.sum(values == RIGHT) == entry.correct


def test_without_an_attack_there_is_no_worst_case():
    clean = join_results([rows("sfm", "none", "clean", 0.0, CLEAN["sfm"])])
    assert worst_answers(right_answers(clean)) == {}


FOUR_CLEAN = {"undefended": [0, 0, 0, 0], "sfm": [0, 0, 0, 1], "tvm": [0, 0, 0, 0]}


def four_rows(*made):
    return rows(*made, labels=np.zeros(4, int), clean=FOUR_CLEAN)


def four_images():
    clean = [(name, "none", "clean", 0.0, values) for name, values in FOUR_CLEAN.items()]
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
    return join_results([four_rows(*made) for made in (*clean, *attacks)])


@pytest.fixture(name="entries", scope="module")
def _entries():
    found = paired_differences(four_images(), "sfm")
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
    alone = join_results([four_rows("sfm", "none", "clean", 0.0, [0, 0, 0, 1])])
    assert paired_differences(alone, "sfm") == []
