"""Whether two defences differ, asked on the very same images."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.metrics import (
    ALL_THREATS,
    NOT_ATTACKED,
    RIGHT,
    WORST_CASE,
    Condition,
    right_answers,
    worst_answers,
)
from sfm_tf.evaluation.results import ResultsTable


def exact_mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict[str, Any]:
    """Compares two models on the same images (McNemar 1947, the exact binomial test).

    If both were right equally often, an image that only one of them is right on would be the
    first's or the second's with even chances.

    Args:
        first_right: Bool of shape `(count,)`: whether the first model is right on each image.
        second_right: The same of the second.

    Returns:
        `examples`, `only_first_right` and `only_second_right`, numbers of images, and the two-sided
        `p_value`, 1 where they never differ.

    Raises:
        SfmError: If the vectors are not of the same images.
    """
    first, second = np.asarray(first_right, bool), np.asarray(second_right, bool)
    if first.ndim != 1 or first.shape != second.shape:
        raise SfmError(
            f"Invalid shapes {first.shape} and {second.shape}; expected two vectors of the same "
            "images."
        )
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    tail = special.bdtr(min(only_first, only_second), only_first + only_second, 0.5)
    return {
        "examples": len(first),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": min(1.0, 2.0 * float(tail)),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for being several (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(factors * np.asarray(p_values, float)[order])
    return np.minimum(corrected, 1.0).tolist()


def paired_differences(results: ResultsTable, subject: str) -> list[dict[str, Any]]:
    """Returns how every two defences differ after the same attack, and in the worst case.

    Args:
        results: Rows as `sfm_tf.evaluation.results.SCHEMA` describes them.
        subject: The defence that the evaluation is about; it comes first in its pairs.

    Returns:
        Entries of `threat_model`, `attack`, `epsilon` in 1/255, `defence`, `other` and what
        `exact_mcnemar` returns of the images that both were attacked on. Clean images have attack
        `clean` and radius 0; worst cases have attack `worst_case`, for all radii with `epsilon`
        None. `holm_p_value` is corrected for all entries that have one, those `against_subject`;
        None elsewhere.
    """
    answers = right_answers(results)
    entries = [
        entry
        for condition, defences in {**answers, **worst_answers(answers)}.items()
        for entry in _pairs(condition, defences, subject)
    ]
    listed = against_subject(entries, subject)
    corrected = dict(
        zip(map(id, listed), holm([entry["p_value"] for entry in listed]), strict=True)
    )
    return [{**entry, "holm_p_value": corrected.get(id(entry))} for entry in entries]


def against_subject(entries: Sequence[Mapping[str, Any]], subject: str) -> list[Mapping[str, Any]]:
    """Returns the entries that a report lists.

    Args:
        entries: What `paired_differences` returned.
        subject: The defence that the evaluation is about.

    Returns:
        The subject and each other defence in the worst case of each threat model at the largest
        radius, and of all threat models and radii together.
    """
    radii = [entry["epsilon"] for entry in entries if entry["epsilon"] is not None]
    largest = max(radii, default=0.0)
    return [
        entry
        for entry in entries
        if (entry["defence"], entry["attack"]) == (subject, WORST_CASE)
        and (entry["threat_model"] == ALL_THREATS or entry["epsilon"] == largest)
    ]


def _pairs(
    condition: Condition, defences: Mapping[str, np.ndarray], subject: str
) -> Iterator[dict[str, Any]]:
    ordered = sorted(defences, key=lambda defence: defence != subject)
    for first, second in itertools.combinations(ordered, 2):
        one, other = defences[first], defences[second]
        both = (one != NOT_ATTACKED) & (other != NOT_ATTACKED)
        if both.any():
            test = exact_mcnemar(one[both] == RIGHT, other[both] == RIGHT)
            yield {**condition._asdict(), "defence": first, "other": second, **test}
