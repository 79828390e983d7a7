"""The figures of an evaluation, from its per-sample results."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sfm_tf.evaluation.paired_answers import (
    ALL_THREATS,
    NOT_ATTACKED,
    RIGHT,
    UNATTACKED,
    WORST_CASE,
    WRONG,
    Condition,
    right_answers,
    worst_answers,
)
from sfm_tf.evaluation.results import CLEAN, DEFENDED, OWN_MODEL, UNDEFENDED, ResultsTable, Scenario
from sfm_tf.evaluation.significance import wilson_interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How often a model is right.

    Attributes:
        examples: Number of images.
        correct: How many of them the model is right on.
        accuracy: Their share, in [0, 1].
        accuracy_low: Lower end of its 95 % Wilson interval.
        accuracy_high: Upper end.
    """

    examples: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanAccuracy(Accuracy):
    """The accuracy of a defence without an attack."""

    defence: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackedAccuracy(Accuracy):
    """The accuracy of a defence after one attack at one radius.

    Attributes:
        defence: Name of the model that is scored.
        threat_model: What the attacker knows.
        attack: Name of the attack.
        epsilon: Radius in 1/255.
        attack_success: Share of the images right when clean that became wrong; None where none was
            right.
        zero_gradient_share: Share of the images where the attack's first gradient was zero.
    """

    defence: str
    threat_model: str
    attack: str
    epsilon: float
    attack_success: float | None
    zero_gradient_share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorstCase(Accuracy):
    """The accuracy of a defence where an image counts only if no attack of a group breaks it.

    Attributes:
        defence: Name of the model that is scored.
        threat_model: What the attacker knows; `all` for every threat model.
        epsilon: Radius in 1/255; None for all radii.
        strongest_attack: The attack that turned most images wrong; None where none did.
    """

    defence: str
    threat_model: str
    epsilon: float | None
    strongest_attack: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinimumNorm(Accuracy):
    """What an attack for the smallest perturbation found, whatever the norm.

    Attributes:
        defence: Name of the model that is scored.
        threat_model: What the attacker knows.
        attack: Name of the attack.
        attack_success: Share of the images right when clean that became wrong; None where none was
            right.
        median_linf: Median L-infinity norm of the perturbations that succeed, for pixels in [0, 1];
            None where none does.
        median_l2: Their median L2 norm.
    """

    defence: str
    threat_model: str
    attack: str
    attack_success: float | None
    median_linf: float | None
    median_l2: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VanishedGradients:
    """The share of gradient entries that float32 shows and an attack in 16 bits did not see."""

    defence: str
    threat_model: str
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """All figures of an evaluation.

    Attributes:
        subject: The defence that the evaluation is about: the masker, else the user's model, else
            the first one named.
        clean: One entry per defence.
        under_attack: One per defence, threat model, attack and radius.
        worst_case: One per defence, threat model and radius; one per defence and threat model for
            all radii; one per defence for all threat models and radii.
        minimum_norm: One per defence, threat model and attack for the smallest perturbation.
        vanished_gradients: One per defence and threat model that was attacked in 16 bits.
    """

    subject: str
    clean: tuple[CleanAccuracy, ...]
    under_attack: tuple[AttackedAccuracy, ...] = ()
    worst_case: tuple[WorstCase, ...] = ()
    minimum_norm: tuple[MinimumNorm, ...] = ()
    vanished_gradients: tuple[VanishedGradients, ...] = ()

    def clean_accuracy(self, defence: str) -> CleanAccuracy | None:
        """Returns the accuracy of a defence without an attack; None where it was not scored."""
        return next((entry for entry in self.clean if entry.defence == defence), None)

    def worst(
        self, defence: str, threat_model: str = ALL_THREATS, epsilon: float | None = None
    ) -> WorstCase | None:
        """Returns the worst case of a group of attacks; None where none of them was run.

        Args:
            defence: Name of the model that is scored.
            threat_model: What the attacker knows; by default every threat model together.
            epsilon: Radius in 1/255; None for all radii together.
        """
        key = (defence, threat_model, epsilon)
        matching = (
            entry
            for entry in self.worst_case
            if (entry.defence, entry.threat_model, entry.epsilon) == key
        )
        return next(matching, None)


def summarise(results: ResultsTable, vanished: Mapping[Scenario, float] | None = None) -> Metrics:
    """Returns accuracies with their intervals, for each attack and for the worst case.

    The worst case of an image is taken per image, then averaged (Carlini et al. 2019, "On
    evaluating adversarial robustness"): an image counts as right only if the model is right on it
    unperturbed, which any ball allows, and after every attack of the group.

    Args:
        results: Rows as `sfm_tf.evaluation.results.SCHEMA` describes them.
        vanished: For attacks in 16 bits, the share of gradient entries that they did not see.
    """
    clean, attacked, unbounded = _split(results)
    keys = ["defence", "threat_model", "attack", "epsilon"]
    return Metrics(
        subject=_subject(clean),
        clean=tuple(
            CleanAccuracy(**key, **_accuracy(_correct(rows)))
            for key, rows in _groups(clean, keys[:1])
        ),
        under_attack=tuple(
            AttackedAccuracy(**key, **_attack_figures(rows))
            for key, rows in _groups(attacked, keys)
        ),
        worst_case=(
            *_worst_cases(attacked, ["defence", "threat_model", "epsilon"]),
            *_worst_cases(attacked, ["defence", "threat_model"]),
            *_worst_cases(attacked, ["defence"]),
        ),
        minimum_norm=tuple(
            MinimumNorm(**key, **_minimum_norm_figures(rows))
            for key, rows in _groups(unbounded, keys[:3])
        ),
        vanished_gradients=tuple(
            VanishedGradients(
                defence=scenario.defence, threat_model=scenario.threat_model, share=share
            )
            for scenario, share in (vanished or {}).items()
        ),
    )


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


def _worst_cases(attacked: ResultsTable, keys: list[str]) -> list[WorstCase]:
    pooled = {"threat_model": ALL_THREATS, "epsilon": None}
    return [
        WorstCase(**{**pooled, **key, **_worst_case(rows)}) for key, rows in _groups(attacked, keys)
    ]


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
    attacked = answers[answers != NOT_ATTACKED]
    return _accuracy(attacked == RIGHT) if len(attacked) else None
