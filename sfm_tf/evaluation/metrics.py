"""The figures of an evaluation, from its per-sample results."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow.compute as pc
from scipy import stats

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.results import (
    CLEAN,
    DEFENDED,
    NO_THREAT,
    OWN_MODEL,
    UNDEFENDED,
    ResultsTable,
)
from sfm_tf.evaluation.threat_models import Use


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the score interval of a proportion (Wilson 1927).

    Args:
        successes: How many trials succeeded.
        count: How many there were, at least 1.
        confidence: Share of such intervals that hold the true proportion, in (0, 1).

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        SfmError: If the successes are not from 0 to `count`, or there were no trials.
    """
    if not (count >= 1 and 0 <= successes <= count):
        raise SfmError(f"Cannot take an interval of {successes} successes in {count} trials.")
    interval = stats.binomtest(int(successes), int(count)).proportion_ci(confidence, "wilson")
    return float(interval.low), float(interval.high)


ALL_THREATS = "all"
"""Name in `threat_model` of the worst case over every threat model."""


def summarise(results: ResultsTable, vanished: Mapping[Use, float] | None = None) -> dict[str, Any]:
    """Returns accuracies with their intervals, for each attack and for the worst case.

    The worst case of an image is taken per image, then averaged (Carlini et al. 2019, "On
    evaluating adversarial robustness"): an image counts as right only if the model is right on it
    unperturbed, which any ball allows, and after every attack of the group.

    Args:
        results: Rows as `sfm_tf.evaluation.results.SCHEMA` describes them.
        vanished: For attacks in 16 bits, the share of gradient entries that they did not see.

    Returns:
        Values that JSON can hold:
        `subject`, the defence that the evaluation is about: the masker, else the user's model, else
        the first one named;
        `clean`, one entry per defence; `under_attack`, one per defence, threat model, attack and
        epsilon; `worst_case`, one per defence, threat model and epsilon, one per defence and
        threat model with `epsilon` None for all radii, and one per defence with `threat_model`
        "all" too. Each has `examples`, `correct`, `accuracy` and the 95 % Wilson interval
        `accuracy_low`, `accuracy_high`. Attacks also have `attack_success`, the share of the
        images right when clean that became wrong (None where none was right), and
        `zero_gradient_share`; worst cases have `strongest_attack`, the one that turned most of
        those images wrong (None where none did). `minimum_norm` has one entry per defence, threat
        model and attack for the smallest perturbation: its `attack_success` at any norm, and
        `median_linf` and `median_l2` of the perturbations that succeed (None where none does).
        `vanished_gradients` has the `share` of each defence and threat model in `vanished`.
    """
    clean, attacked, unbounded = _split(results)
    keys = ["defence", "threat_model", "attack", "epsilon"]
    return {
        "subject": _subject(clean),
        "clean": [{**key, **_accuracy(_correct(rows))} for key, rows in _groups(clean, keys[:1])],
        "under_attack": [{**key, **_attack_figures(rows)} for key, rows in _groups(attacked, keys)],
        "worst_case": [
            *_worst_cases(attacked, ["defence", "threat_model", "epsilon"]),
            *_worst_cases(attacked, ["defence", "threat_model"]),
            *_worst_cases(attacked, ["defence"]),
        ],
        "minimum_norm": [
            {**key, **_minimum_norm_figures(rows)} for key, rows in _groups(unbounded, keys[:3])
        ],
        "vanished_gradients": [
            {"defence": use.defence, "threat_model": use.threat_model, "share": share}
            for use, share in (vanished or {}).items()
        ],
    }


def _subject(clean: ResultsTable) -> str:
    measured = clean["defence"].unique().to_pylist()
    others = [name for name in measured if name != UNDEFENDED]
    return next((name for name in (DEFENDED, OWN_MODEL, *others) if name in measured), UNDEFENDED)


def _split(results: ResultsTable) -> tuple[ResultsTable, ResultsTable, ResultsTable]:
    """Returns the rows of clean images, of attacks at a radius and of those at none."""
    is_clean = pc.equal(results["attack"], CLEAN)
    is_unbounded = pc.is_inf(results["epsilon"])
    attacked = pc.invert(pc.or_(is_clean, is_unbounded))
    return results.filter(is_clean), results.filter(attacked), results.filter(is_unbounded)


def _groups(results: ResultsTable, keys: list[str]) -> list[tuple[dict[str, Any], ResultsTable]]:
    """Returns the rows of each combination of `keys`, in order of first appearance."""
    combinations = results.group_by(keys, use_threads=False).aggregate([]).to_pylist()
    groups = []
    for combination in combinations:
        rows = results
        for key, value in combination.items():
            rows = rows.filter(pc.equal(rows[key], value))
        groups.append(({key: combination[key] for key in keys}, rows))
    return groups


def _column(results: ResultsTable, name: str) -> np.ndarray:
    return results[name].to_numpy()


def _correct(results: ResultsTable) -> np.ndarray:
    return _column(results, "prediction") == _column(results, "label")


def _correct_when_clean(results: ResultsTable) -> np.ndarray:
    return _column(results, "clean_prediction") == _column(results, "label")


def _accuracy(correct: np.ndarray) -> dict[str, Any]:
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return {
        "examples": len(correct),
        "correct": int(correct.sum()),
        "accuracy": float(correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
    }


def _attack_figures(rows: ResultsTable) -> dict[str, Any]:
    correct, before = _correct(rows), _correct_when_clean(rows)
    return {
        **_accuracy(correct),
        "attack_success": float(np.mean(~correct[before])) if before.any() else None,
        "zero_gradient_share": float(_column(rows, "zero_gradient").mean()),
    }


def _minimum_norm_figures(rows: ResultsTable) -> dict[str, Any]:
    before = _correct_when_clean(rows)
    succeeded = before & ~_correct(rows)
    medians = {
        f"median_{norm}": float(np.median(_column(rows, norm)[succeeded]))
        if succeeded.any()
        else None
        for norm in ("linf", "l2")
    }
    return {
        **_accuracy(_correct(rows)),
        **medians,
        "attack_success": float(succeeded.sum() / before.sum()) if before.any() else None,
    }


def _worst_cases(attacked: ResultsTable, keys: list[str]) -> list[dict[str, Any]]:
    pooled = {"threat_model": ALL_THREATS, "epsilon": None}
    return [{**pooled, **key, **_worst_case(rows)} for key, rows in _groups(attacked, keys)]


def _worst_case(rows: ResultsTable) -> dict[str, Any]:
    images, positions = np.unique(_column(rows, "image_index"), return_inverse=True)
    worst = np.ones(len(images), bool)
    np.logical_and.at(worst, positions, _correct(rows) & _correct_when_clean(rows))
    return {**_accuracy(worst), "strongest_attack": _strongest_attack(rows)}


def _strongest_attack(rows: ResultsTable) -> str | None:
    broken = rows.filter(_correct_when_clean(rows) & ~_correct(rows))
    # An image that an attack breaks at several radii is one image.
    images = {
        key["attack"]: len(np.unique(_column(group, "image_index")))
        for key, group in _groups(broken, ["attack"])
    }
    return max(images, key=images.__getitem__) if images else None


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
            "clean": _breakdown_accuracy(clean[labels == place]),
            "worst_case": _breakdown_accuracy(worst[labels == place]),
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


def _breakdown_accuracy(answers: np.ndarray) -> dict[str, Any] | None:
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
