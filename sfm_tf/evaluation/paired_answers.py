"""Which images each defence is right on, and how defences differ on the very same images."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow.compute as pc

from sfm_tf.evaluation.results import CLEAN, NO_THREAT, ResultsTable
from sfm_tf.evaluation.significance import exact_mcnemar, holm

ALL_THREATS = "all"
"""Name in `threat_model` of the worst case over every threat model."""

WORST_CASE = "worst_case"
"""Name in `attack` of what is left right by every attack of a group."""

NOT_ATTACKED, WRONG, RIGHT = -1, 0, 1
"""Values of answers: of an image that was not attacked, a wrong and a right one."""


class Condition(NamedTuple):
    """What was done to the images.

    Attributes:
        threat_model: What the attacker knows.
        attack: Name of the attack.
        epsilon: Radius in 1/255; 0 for clean images, None for all radii together.
    """

    threat_model: str
    attack: str
    epsilon: float | None


UNATTACKED = Condition(NO_THREAT, CLEAN, 0.0)

Answers: TypeAlias = dict[Condition, dict[str, np.ndarray]]
"""For each condition and each defence, int8 of shape `(count,)`, an answer for each image."""


def right_answers(results: ResultsTable) -> Answers:
    """Returns the answers without an attack and after each attack at each radius.

    Args:
        results: Rows as `sfm_tf.evaluation.results.SCHEMA` describes them; those of attacks at no
            radius are left out.

    Returns:
        Conditions and their defences in order of first appearance.
    """
    rows = results.filter(pc.invert(pc.is_inf(results["epsilon"])))
    encoded = [
        rows[key].combine_chunks().dictionary_encode()
        for key in ("threat_model", "attack", "epsilon", "defence")
    ]
    values = [column.dictionary.to_pylist() for column in encoded]
    codes = np.stack([column.indices.to_numpy() for column in encoded])
    groups, first, places = np.unique(codes, axis=1, return_index=True, return_inverse=True)
    image = rows["image_index"].to_numpy()
    right = rows["prediction"].to_numpy() == rows["label"].to_numpy()
    table = np.full((groups.shape[1], int(image.max()) + 1), NOT_ATTACKED, np.int8)
    table[places.reshape(-1), image] = right
    answers: Answers = {}
    for place in np.argsort(first):
        *condition, defence = (
            names[code] for names, code in zip(values, groups[:, place], strict=True)
        )
        answers.setdefault(Condition(*condition), {})[defence] = table[place]
    return answers


def worst_answers(answers: Answers) -> Answers:
    """Returns the worst case per image, as `sfm_tf.evaluation.metrics.summarise` defines it.

    Args:
        answers: What `right_answers` returned.

    Returns:
        A condition for each threat model at each radius, one for each threat model with `epsilon`
        None and one for all threat models.
    """
    attacked = [condition for condition in answers if condition != UNATTACKED]
    groups: dict[Condition, list[Condition]] = {}
    for name in (_of_a_radius, _of_a_threat_model, _of_all):
        for condition in attacked:
            groups.setdefault(name(condition), []).append(condition)
    return {
        name: {
            defence: _worst(answers, defence, conditions)
            for defence in answers[UNATTACKED]
            if any(defence in answers[condition] for condition in conditions)
        }
        for name, conditions in groups.items()
    }


def _of_a_radius(condition: Condition) -> Condition:
    return Condition(condition.threat_model, WORST_CASE, condition.epsilon)


def _of_a_threat_model(condition: Condition) -> Condition:
    return Condition(condition.threat_model, WORST_CASE, None)


def _of_all(_: Condition) -> Condition:
    return Condition(ALL_THREATS, WORST_CASE, None)


def _worst(
    answers: Mapping[Condition, Mapping[str, np.ndarray]],
    defence: str,
    conditions: Iterable[Condition],
) -> np.ndarray:
    attacked = np.stack([answers[c][defence] for c in conditions if defence in answers[c]])
    seen = np.any(attacked != NOT_ATTACKED, axis=0)
    right = np.all(attacked != WRONG, axis=0) & (answers[UNATTACKED][defence] == RIGHT)
    return np.where(seen, right, NOT_ATTACKED).astype(np.int8)


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
