"""Made-up figures, as the evaluation would leave them, for tests of what shows them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.typed_json import read_typed
from sfm_tf.audit.blessing import Blessing, decide
from sfm_tf.audit.finding import Finding
from sfm_tf.audit.probes.measurements import Probes
from sfm_tf.evaluation.metrics import (
    AttackedAccuracy,
    CleanAccuracy,
    Metrics,
    WorstCase,
    summarise,
)
from sfm_tf.evaluation.results import ResultsTable, join_results, results_rows
from sfm_tf.evaluation.runner import Cost
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.significance import wilson_interval
from sfm_tf.report.comparison import ComparedRun
from sfm_tf.report.inputs import ReportInputs
from sfm_tf.report.tables import Table

HALF_RIGHT: Mapping[str, Any] = {
    "examples": 10,
    "correct": 5,
    "accuracy": 0.5,
    "accuracy_low": 0.24,
    "accuracy_high": 0.76,
}
"""An accuracy as metrics hold it: 5 of 10 images, with its interval."""

PROBES = read_typed(Probes, pathlib.Path(__file__).parent / "testdata/probes.json")
"""What the probes of the demo's defence found on 100 images."""

OF_FOUR = (
    "0.0% (0.0–49.0)",
    "25.0% (4.6–69.9)",
    "50.0% (15.0–85.0)",
    "75.0% (30.1–95.4)",
    "100.0% (51.0–100.0)",
)
"""How 0 to 4 right images of 4 read, with the Wilson intervals that published tables give."""

FOUR_LABELS = (0, 0, 1, 1)

_FOUR_IMAGES = {
    "none": (("undefended", "clean", 0.0, (0, 0, 1, 0)), ("sfm", "clean", 0.0, (0, 0, 1, 0))),
    "black_box": (
        ("sfm", "fgsm", 8.0, (0, 0, 1, 1)),
        ("sfm", "pgd", 8.0, (0, 1, 1, 0)),
        ("sfm", "pgd", 16.0, (1, 1, 1, 0)),
    ),
    "white_box": (("sfm", "fgsm", 8.0, (0, 1, 0, 0)), ("sfm", "pgd", 8.0, (1, 1, 0, 0))),
    "decision_based": (("sfm", "hop_skip_jump", 8.0, (0, 0)),),
}


def four_images(*threat_models: str) -> ResultsTable:
    """Returns results of 4 images, of which the last is wrong without an attack.

    The black box leaves images 0 and 2 right, and at the larger radius image 2; the white box
    leaves none.
    """
    return join_results(
        [
            answers(defence, name, attack, epsilon, FOUR_LABELS, (0, 0, 1, 0), predictions)
            for name in ("none", *threat_models)
            for defence, attack, epsilon, predictions in _FOUR_IMAGES[name]
        ]
    )


def accuracy(correct: int, examples: int) -> dict[str, Any]:
    """Returns an accuracy as metrics hold it, with its Wilson interval."""
    low, high = wilson_interval(correct, examples)
    shares = {"accuracy": correct / examples, "accuracy_low": low, "accuracy_high": high}
    return {"examples": examples, "correct": correct, **shares}


def attacked(
    threat_model: str,
    attack: str,
    epsilon: float,
    figures: Mapping[str, Any],
    defence: str = "sfm",
    **changes: Any,
) -> AttackedAccuracy:
    """Returns the accuracy of a defence under an attack that had success on half of the images."""
    keys = {"defence": defence, "threat_model": threat_model, "attack": attack, "epsilon": epsilon}
    shares = {"attack_success": 0.5, "zero_gradient_share": 0.0}
    return AttackedAccuracy(**keys, **{**figures, **shares, **changes})


def worst(
    threat_model: str,
    epsilon: float | None,
    figures: Mapping[str, Any],
    defence: str = "sfm",
    attack: str | None = "pgd",
) -> WorstCase:
    """Returns the accuracy of a defence after the worst attack on each image."""
    keys = {"defence": defence, "threat_model": threat_model, "epsilon": epsilon}
    return WorstCase(**keys, **figures, strongest_attack=attack)


def finding(status: str, is_must: bool = True, title: str = "") -> Finding:
    """Returns what a check of the audit found, titled by its status unless a title is given."""
    title = title or f"Title {status}"
    return Finding("rule", title, status, "3 of 9 images.", "It matters.", "Who", is_must)


def cells(table: Table) -> dict[str, list[str]]:
    """Returns the words of each row of a table by the row's label."""
    return {row.label: [str(cell) for cell in row.cells] for row in table.rows}


def inputs() -> ReportInputs:
    """Returns what a report shows of a defence that is right on half of 10 images, not attacked."""
    return ReportInputs(
        experiment="one",
        dataset="digits",
        statistics={},
        class_counts={"cat": 10},
        evaluation=EvaluationConfig(epsilons=(8.0,)),
        metrics=Metrics(subject="sfm", clean=(CleanAccuracy(defence="sfm", **HALF_RIGHT),)),
        blessing=Blessing(True, ("A reason.",)),
        history={},
        manifests=(),
        gallery=None,
    )


def rows(threat_model: str, attack: str, epsilon: float, correct: int, count: int) -> ResultsTable:
    """Returns results of the defence under an attack that leaves the first `correct` images right.

    Args:
        threat_model: What the attacker knows; `none` for clean images.
        attack: Name of the attack; `clean` for none.
        epsilon: Radius in 1/255.
        correct: How many images are right.
        count: How many were attacked, all of label 0 and right when clean.
    """
    labels = np.zeros(count, np.int64)
    predictions = np.where(np.arange(count) < correct, 0, 1)
    return answers("sfm", threat_model, attack, epsilon, labels, labels, predictions)


def answers(
    defence: str,
    threat_model: str,
    attack: str,
    epsilon: float,
    labels: Sequence[int] | np.ndarray,
    clean_predictions: Sequence[int] | np.ndarray,
    predictions: Sequence[int] | np.ndarray,
    **changes: Any,
) -> ResultsTable:
    """Returns results of a defence under an attack, image by image; clean ones are cut to length.

    Args:
        defence: Name of the model that is scored.
        threat_model: What the attacker knows; `none` for clean images.
        attack: Name of the attack; `clean` for none.
        epsilon: Radius in 1/255.
        labels: The true classes.
        clean_predictions: The classes that the model predicts without an attack.
        predictions: Those after it, of the first images if there are fewer.
        **changes: Columns of which another value than the one below matters.
    """
    count = len(predictions)
    values = {
        "label": labels[:count],
        "defence": defence,
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "clean_prediction": clean_predictions[:count],
        "prediction": predictions,
        "linf": 0.03,
        "l2": 0.1,
        "iterations": 3,
        "loss": 0.5,
        "zero_gradient": False,
        **changes,
    }
    return results_rows(count, values)


def manifest(stage: str, config: Mapping[str, Mapping[str, Any]], seed: int = 0) -> Manifest:
    """Returns the manifest of a stage that ran with these settings, by section, and this seed."""
    return Manifest(
        stage=stage,
        fingerprint="cd" * 32,
        config={section: dict(values) for section, values in config.items()},
        seed=seed,
        inputs={},
        content="0a",
        code_version="0" * 64,
        package_versions={"keras": "3.15.1"},
        started="2025-01-02T03:04:05+00:00",
        wall_seconds=1.0,
    )


def run(
    name: str,
    manifests: Sequence[Manifest],
    *attacked: ResultsTable,
    count: int,
    costs: Sequence[Cost] = (),
) -> ComparedRun:
    """Returns a run for a comparison, on `count` images, blessed if half of them stay right.

    Args:
        name: What it is called.
        manifests: Of its stages.
        *attacked: Rows as `rows` returns them.
        count: How many images were evaluated; all are right without an attack.
        costs: What the defences cost.
    """
    table = join_results([rows("none", "clean", 0.0, count, count), *attacked])
    metrics = summarise(table)
    return ComparedRun(
        name=name,
        workdir=f"runs/{name}",
        experiment="digits",
        images_digest="ab" * 32,
        metrics=metrics,
        results=table,
        blessing=decide(metrics, EvaluationConfig(min_worst_case_accuracy=0.5)),
        costs=costs,
        manifests=manifests,
    )
