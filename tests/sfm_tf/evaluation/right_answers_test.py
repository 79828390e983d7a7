import numpy as np
import pytest

from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.results import join_results, results_rows
from sfm_tf.evaluation.right_answers import (
    NOT_ATTACKED,
    RIGHT,
    UNATTACKED,
    Condition,
    right_answers,
    worst_answers,
)

COUNT = 40
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, COUNT)
CLEAN = {name: RANDOM.integers(0, 3, COUNT) for name in ("undefended", "sfm")}


def rows(defence, threat_model, attack, epsilon, prediction):
    count = len(prediction)
    values = {
        "label": LABELS[:count],
        "defence": defence,
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "clean_prediction": CLEAN[defence][:count],
        "prediction": prediction,
        "linf": 0.0,
        "l2": 0.0,
        "iterations": 0,
        "loss": 0.0,
        "zero_gradient": False,
    }
    return results_rows(count, values)


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
    entries = summarise(results)["worst_case"]
    assert sum(map(len, worst.values())) == len(entries)
    for entry in entries:
        condition = Condition(entry["threat_model"], "worst_case", entry["epsilon"])
        values = worst[condition][entry["defence"]]
        assert np.sum(values != NOT_ATTACKED) == entry["examples"]
        assert np.sum(values == RIGHT) == entry["correct"]


def test_without_an_attack_there_is_no_worst_case():
    clean = join_results([rows("sfm", "none", "clean", 0.0, CLEAN["sfm"])])
    assert worst_answers(right_answers(clean)) == {}


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
