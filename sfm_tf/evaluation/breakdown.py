"""What becomes of each class: its accuracies, and what its images are taken for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sfm_tf.evaluation.intervals import wilson_interval
from sfm_tf.evaluation.metrics import ALL_THREATS
from sfm_tf.evaluation.results import CLEAN, ResultsTable
from sfm_tf.evaluation.right_answers import (
    NOT_ATTACKED,
    RIGHT,
    UNATTACKED,
    WORST_CASE,
    WRONG,
    Condition,
    right_answers,
    worst_answers,
)


def break_down(results: ResultsTable, subject: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns what becomes of each class.

    Args:
        results: Rows as `sfm_tf.evaluation.results.SCHEMA` describes them.
        subject: The defence that the evaluation is about.
        class_names: Names of the classes, by their indices.

    Returns:
        Values that JSON can hold: `per_class` and `confusion`, as the functions of these names
        define them.
    """
    return {
        "per_class": per_class(results, subject, class_names),
        "confusion": confusion(results, subject, len(class_names)),
    }


def per_class(
    results: ResultsTable, subject: str, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the accuracies of each class without an attack and in the worst case.

    Args:
        results: Rows as `sfm_tf.evaluation.results.SCHEMA` describes them.
        subject: The defence that the evaluation is about.
        class_names: Names of the classes, by their indices.

    Returns:
        For each class its `class`, and in `clean` and `worst_case`, that over all threat models and
        radii, the `examples`, `correct`, `accuracy` and its 95 % Wilson interval `accuracy_low`,
        `accuracy_high`; None where no image of the class was looked at.
    """
    answers = right_answers(results)
    clean = answers[UNATTACKED][subject]
    everything = worst_answers(answers).get(Condition(ALL_THREATS, WORST_CASE, None), {})
    worst = everything.get(subject, np.full_like(clean, NOT_ATTACKED))
    labels = _labels(results, subject)
    return [
        {
            "class": name,
            "clean": _accuracy(clean[labels == place]),
            "worst_case": _accuracy(worst[labels == place]),
        }
        for place, name in enumerate(class_names)
    ]


def confusion(results: ResultsTable, subject: str, class_count: int) -> dict[str, Any] | None:
    """Returns what the images of each class are taken for under the strongest attack.

    Args:
        results: Rows as `sfm_tf.evaluation.results.SCHEMA` describes them.
        subject: The defence that the evaluation is about.
        class_count: Number of classes.

    Returns:
        `threat_model`, `attack` and `epsilon` of the single attack that turns most images wrong,
        the first where several do; the images `turned_wrong`; `counts`, for each true class the
        images of each predicted class. None where the subject was not attacked.
    """
    answers = right_answers(results)
    clean = answers[UNATTACKED][subject]
    turned_wrong = {
        condition: int(np.sum((defences[subject] == WRONG) & (clean == RIGHT)))
        for condition, defences in answers.items()
        if condition != UNATTACKED and subject in defences
    }
    if not turned_wrong:
        return None
    strongest = max(turned_wrong, key=turned_wrong.__getitem__)
    rows = results
    for key, value in {**strongest._asdict(), "defence": subject}.items():
        rows = rows.filter(pc.equal(rows[key], value))
    counts = np.zeros((class_count, class_count), int)
    np.add.at(counts, (rows["label"].to_numpy(), rows["prediction"].to_numpy()), 1)
    return {
        **strongest._asdict(),
        "turned_wrong": turned_wrong[strongest],
        "counts": counts.tolist(),
    }


def _labels(results: ResultsTable, subject: str) -> np.ndarray:
    rows = results.filter(
        pc.and_(pc.equal(results["defence"], subject), pc.equal(results["attack"], CLEAN))
    )
    labels = np.empty(rows.num_rows, np.int64)
    labels[rows["image_index"].to_numpy()] = rows["label"].to_numpy()
    return labels


def _accuracy(answers: np.ndarray) -> dict[str, Any] | None:
    examples, correct = int(np.sum(answers != NOT_ATTACKED)), int(np.sum(answers == RIGHT))
    if not examples:
        return None
    low, high = wilson_interval(correct, examples)
    return {
        "examples": examples,
        "correct": correct,
        "accuracy": correct / examples,
        "accuracy_low": low,
        "accuracy_high": high,
    }
