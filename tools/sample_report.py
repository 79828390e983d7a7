"""A report and a comparison of made-up figures, the same ones every time.

    python -m tools.sample_report FOLDER

writes both into FOLDER, to look at after a change to the pages, without a training. The golden test
compares them with the stored ones.
"""

import argparse
import pathlib
from collections.abc import Iterator

import numpy as np

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.audit.blessing import decide
from sfm_tf.audit.finding import Finding, Status
from sfm_tf.audit.verdict import verdict
from sfm_tf.evaluation import results
from sfm_tf.evaluation.metrics import break_down, summarise
from sfm_tf.evaluation.paired_answers import paired_differences
from sfm_tf.evaluation.runner import Cost
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.report.collection import accuracy_by_radius
from sfm_tf.report.comparison import ComparedRun, build_comparison
from sfm_tf.report.document import build_report
from sfm_tf.report.inputs import Audit, Gallery, Perturbation, ReportInputs, RowCommand

CLASSES = ("cat", "dog", "ship", "truck")
COUNT = 40
LABELS = np.arange(COUNT) % len(CLASSES)
EVALUATION = EvaluationConfig(
    threat_models=("black_box", "white_box"),
    attacks=("fgsm", "pgd", "mim", "apgd_ce"),
    epsilons=(8.0, 16.0),
    num_examples=COUNT,
)
_BROKEN = {
    ("black_box", "fgsm", 8.0): 8,
    ("black_box", "pgd", 8.0): 11,
    ("black_box", "mim", 8.0): 13,
    ("black_box", "apgd_ce", 8.0): 12,
    ("black_box", "fgsm", 16.0): 13,
    ("black_box", "pgd", 16.0): 18,
    ("black_box", "mim", 16.0): 20,
    ("black_box", "apgd_ce", 16.0): 19,
    ("white_box", "fgsm", 8.0): 21,
    ("white_box", "pgd", 8.0): 29,
    ("white_box", "mim", 8.0): 28,
    ("white_box", "apgd_ce", 8.0): 31,
    ("white_box", "fgsm", 16.0): 27,
    ("white_box", "pgd", 16.0): 36,
    ("white_box", "mim", 16.0): 35,
    ("white_box", "apgd_ce", 16.0): 38,
}
"""How many of the images are wrong after each attack."""


def sample_results(shift: int = 0, stride: int = 7) -> results.ResultsTable:
    """Returns rows of the defended and of the bare classifier.

    Args:
        shift: By how many images fewer the attacks break the defended one.
        stride: Steps between images that it is wrong on; shares no factor with `COUNT`.
    """
    tables = []
    for defence, wrong in (("undefended", 2), ("sfm", 4)):
        clean = _predictions(wrong, 3)
        tables.append(_rows(defence, "none", "clean", 0.0, clean, clean))
        for (threat_model, attack, epsilon), broken in _BROKEN.items():
            count = broken - shift if defence == "sfm" else min(COUNT, broken + 4)
            after = _predictions(count, stride)
            tables.append(_rows(defence, threat_model, attack, epsilon, clean, after))
    return results.join_results(tables)


def _predictions(wrong: int, stride: int) -> np.ndarray:
    """Returns predictions of which `wrong` are the next class, scattered by a stride."""
    is_wrong = (np.arange(COUNT) * stride) % COUNT < wrong
    return np.where(is_wrong, (LABELS + 1) % len(CLASSES), LABELS)


def _rows(
    defence: str,
    threat_model: str,
    attack: str,
    epsilon: float,
    clean_prediction: np.ndarray,
    prediction: np.ndarray,
) -> results.ResultsTable:
    values = {
        "label": LABELS,
        "defence": defence,
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "clean_prediction": clean_prediction,
        "prediction": prediction,
        "linf": epsilon / 255.0,
        "l2": epsilon / 16.0,
        "iterations": 10,
        "loss": 0.5,
        "zero_gradient": False,
    }
    return results.results_rows(COUNT, values)


def sample_inputs() -> ReportInputs:
    """Returns what a report shows, without anything measured."""
    rows = sample_results()
    metrics = summarise(rows)
    split = {
        "count": 100,
        "exact_duplicates": 1,
        "mean": [0.5, 0.25, 0.125],
        "std": [0.25, 0.125, 0.0625],
        "class_counts": dict.fromkeys(CLASSES, 25),
    }
    ramp = np.linspace(0.0, 1.0, 6 * 8 * 8 * 3, dtype=np.float32).reshape(6, 8, 8, 3)
    masks = ramp[..., :1]
    epoch = {
        "stage": "alternation",
        "training": {"classification_loss": 1.0, "mask_loss": 0.5},
        "validation": {"bare_accuracy": 0.9, "defended_accuracy": 0.85},
    }
    shifted = np.clip(ramp + np.float32(16.0 / 255.0), 0.0, 1.0)
    return ReportInputs(
        experiment="sample",
        dataset="cifar10",
        statistics={"train": split, "test": split},
        class_counts=dict.fromkeys(CLASSES, COUNT // len(CLASSES)),
        evaluation=EVALUATION,
        metrics=metrics,
        blessing=decide(metrics, EVALUATION, _audit().verdict),
        history={"defence": [epoch, epoch], "source": [epoch]},
        manifests=[
            _manifest(
                "train", {"model": {"preprocessor": "bit_depth_4|median_2", "classifier": "c"}}
            ),
            _manifest("evaluate", {"evaluation": {"iterations": 10, "norm": "inf"}}),
        ],
        gallery=Gallery(ramp, masks, masks * ramp, masks * ramp),
        perturbations=[Perturbation("white_box", "pgd", 16.0, ramp, shifted)],
        costs=[
            Cost(
                defence=defence,
                images=100,
                seconds_per_1000_images=0.5 * ratio,
                relative_to_undefended=ratio,
            )
            for defence, ratio in (("undefended", 1.0), ("sfm", 1.5))
        ],
        training_seconds={"undefended": 60.0, "sfm": 90.0},
        audit=_audit(),
        accuracy_by_radius=accuracy_by_radius(rows),
        paired=paired_differences(rows, "sfm"),
        breakdown=break_down(rows, "sfm", CLASSES),
        commands=tuple(_commands()),
    )


def _commands() -> Iterator[RowCommand]:
    program = "python -m pipelines.evaluate --workdir=WORKDIR --experiment=sample --seed=0"
    yield RowCommand("all", "worst_case", None, program)
    for threat_model in EVALUATION.threat_models:
        words = f"{program} --threat_models={threat_model}"
        yield RowCommand(threat_model, "worst_case", None, words)
        yield RowCommand(threat_model, "pgd", 8.0, f"{words} --attacks=pgd --epsilons=8")


def _audit() -> Audit:
    """Returns a finding of each status."""
    figures: dict[Status, str] = {
        "pass": "An attack of many steps left 9 fewer of 40 images right than one of one step.",
        "warn": "PGD leaves 4 of 40 images right; with twice the steps it leaves 3 and breaks 1.",
        "fail": "Images that only the weaker attacker breaks: black box 7 of 40.",
        "not_run": "The probes were not run.",
    }
    findings = tuple(
        Finding(
            rule=f"rule_{status}",
            title=f"A check that comes out as {status.replace('_', ' ')}",
            status=status,
            figure=figure,
            why="A failure would mean that the figures say nothing of the defence.",
            source="Carlini et al. 2019, section 5",
            is_must=status != "not_run",
        )
        for status, figure in figures.items()
    )
    return Audit(findings, verdict(findings))


def _manifest(stage: str, config: dict[str, dict[str, object]], seed: int = 0) -> Manifest:
    return Manifest(
        stage=stage,
        fingerprint="0123456789abcdef" * 4,
        config=config,
        seed=seed,
        inputs={},
        content="00",
        code_version="fedcba9876543210" * 4,
        package_versions={"keras": "3.15.1", "tensorflow": "2.21.0"},
        started="2025-01-02T03:04:05+00:00",
        wall_seconds=12.5,
    )


def sample_runs() -> list[ComparedRun]:
    """Returns runs on the same images: another seed of the first, and one with less effort."""
    runs = []
    for name, shift, stride, iterations, seed in (
        ("first", 0, 7, 20, 0),
        ("second", 4, 11, 10, 4),
        ("third", 1, 13, 20, 1),
    ):
        rows = sample_results(shift, stride)
        metrics = summarise(rows)
        run = ComparedRun(
            name=name,
            workdir=f"runs/{name}",
            experiment="sample",
            images_digest="0123456789abcdef" * 4,
            metrics=metrics,
            results=rows,
            blessing=decide(metrics, EVALUATION),
            costs=sample_inputs().costs,
            manifests=[_manifest("evaluate", {"evaluation": {"iterations": iterations}}, seed)],
        )
        runs.append(run)
    return runs


def main(arguments: list[str] | None = None) -> None:
    """Writes the report and the comparison into the folder that the arguments name."""
    parser = argparse.ArgumentParser(description="Writes a report of made-up figures.")
    parser.add_argument(
        "folder", type=pathlib.Path, help="the folder of the documents; made if needed"
    )
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    build_report(sample_inputs(), folder)
    build_comparison(sample_runs(), folder)


if __name__ == "__main__":
    main()
