"""The figures of an evaluation, from its per-sample results."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sfm_tf.evaluation.attack_plan import Use
from sfm_tf.evaluation.intervals import wilson_interval
from sfm_tf.evaluation.results import CLEAN, DEFENDED, OWN_MODEL, UNDEFENDED, ResultsTable

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
