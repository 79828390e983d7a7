"""What tests of later stages start from: artifacts of untrained models, and made-up figures."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.audit.audited_evaluation import write_evaluation
from sfm_tf.audit.blessing import Blessing, decide
from sfm_tf.datasets.ingestion import ingest
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.results import ResultsTable, join_results, results_rows
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.subjects import ModelFolders, load_subjects
from sfm_tf.models.settings import ModelConfig
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.report.comparison import ComparedRun
from sfm_tf.report.report_inputs import ReportInputs
from sfm_tf.training import model_files
from sfm_tf.training.model_building import Blueprint, Seeds, read_channel_statistics

_MODULE = "sfm_tf.testing"

HALF_RIGHT: Mapping[str, Any] = {
    "examples": 10,
    "correct": 5,
    "accuracy": 0.5,
    "accuracy_low": 0.24,
    "accuracy_high": 0.76,
}
"""An accuracy as metrics hold it: 5 of 10 images, with its interval."""


def make_records(run_directory: RunDirectory) -> Artifact:
    """Leaves 100 real digits to train on and 20 to test on, as the ingest stage would."""
    config = DataConfig(shards=1, max_train_examples=100, max_test_examples=20)

    def produce(folder: pathlib.Path) -> None:
        ingest(config, 0, folder, lambda split, count: None)

    execution = Execution(
        stage="ingest", module=_MODULE, configs={"data": config}, seed=0, inputs={}
    )
    return execute(execution, run_directory, produce).artifact


def make_models(run_directory: RunDirectory, records: Artifact) -> Artifact:
    """Leaves untrained models with the history of one epoch, as the train stage would."""
    config = ModelConfig(classifier_width=4, masker_width=4, masker_depth=1)

    def produce(folder: pathlib.Path) -> None:
        schema = read_schema(records.folder)
        statistics = read_channel_statistics(records.folder)
        blueprint = Blueprint(config, schema, statistics, Seeds.spawn(0))
        source = blueprint.source().classifier
        model_files.save_models(folder, blueprint.defended(), source, schema.class_names)
        measured = {"classification_loss": 2.3, "accuracy": 0.1}
        epoch = {"stage": "source", "training": measured, "validation": {"bare_accuracy": 0.1}}
        write_json(folder / model_files.HISTORY_FILE, {"defence": [epoch], "source": [epoch]})
        seconds = dict.fromkeys(("classifier_seconds", "masker_seconds", "source_seconds"), 1.0)
        write_json(folder / model_files.TIMING_FILE, seconds)

    execution = Execution(
        stage="train", module=_MODULE, configs={"model": config}, seed=0, inputs={"ingest": records}
    )
    return execute(execution, run_directory, produce).artifact


def make_evaluation(
    run_directory: RunDirectory, *, min_accuracy: float = 0.0, num_examples: int = 12
) -> Artifact:
    """Leaves records, models and an FGSM evaluation of them, as the three stages would.

    Args:
        run_directory: Where to.
        min_accuracy: Clean accuracy needed for BLESSED; 0 blesses even untrained models.
        num_examples: Test images evaluated.
    """
    records = make_records(run_directory)
    models = make_models(run_directory, records)
    config = EvaluationConfig(
        num_examples=num_examples,
        attacks=("fgsm",),
        epsilons=(16.0,),
        audit_examples=0,
        required_audit="not_credible",
        min_clean_accuracy=min_accuracy,
        max_clean_drop=1.0,
        min_worst_case_accuracy=0.0,
    )

    def produce(folder: pathlib.Path) -> None:
        schema = read_schema(records.folder)
        images, labels = load_split(records.folder, "test", schema, num_examples)
        subjects = load_subjects(config, ComparedConfig(), ModelFolders(models.folder), schema)
        store = run_directory.shared_folder("evaluate", "adversarial")
        write_evaluation(
            subjects.models,
            subjects.source,
            images,
            labels,
            config,
            0,
            folder,
            store,
            lambda phrase, done, total: None,
        )

    execution = Execution(
        stage="evaluate",
        module=_MODULE,
        configs={"evaluation": config, "compared": ComparedConfig()},
        seed=0,
        inputs={"ingest": records, "train": models},
    )
    return execute(execution, run_directory, produce).artifact


def made_up_inputs() -> ReportInputs:
    """Returns what a report shows of a defence that is right on half of 10 images, not attacked."""
    return ReportInputs(
        experiment="one",
        dataset="digits",
        statistics={},
        class_counts={"cat": 10},
        evaluation=EvaluationConfig(epsilons=(8.0,)),
        metrics={
            "subject": "sfm",
            "clean": [{"defence": "sfm", **HALF_RIGHT}],
            "under_attack": [],
            "worst_case": [],
        },
        blessing=Blessing(True, ("A reason.",)),
        history={},
        manifests=(),
        gallery=None,
    )


def made_up_rows(
    threat_model: str, attack: str, epsilon: float, correct: int, count: int
) -> ResultsTable:
    """Returns results of the defence under an attack that leaves the first `correct` images right.

    Args:
        threat_model: What the attacker knows; `none` for clean images.
        attack: Name of the attack; `clean` for none.
        epsilon: Radius in 1/255.
        correct: How many images are right.
        count: How many were attacked, all of label 0 and right when clean.
    """
    values = {
        "label": 0,
        "defence": "sfm",
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "clean_prediction": 0,
        "prediction": np.where(np.arange(count) < correct, 0, 1),
        "linf": 0.03,
        "l2": 0.1,
        "iterations": 3,
        "loss": 0.5,
        "zero_gradient": False,
    }
    return results_rows(count, values)


def made_up_manifest(
    stage: str, config: Mapping[str, Mapping[str, Any]], seed: int = 0
) -> Manifest:
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


def made_up_run(
    name: str,
    manifests: Sequence[Manifest],
    *attacked: ResultsTable,
    count: int,
    costs: Sequence[Mapping[str, Any]] = (),
) -> ComparedRun:
    """Returns a run for a comparison, on `count` images, blessed if half of them stay right.

    Args:
        name: What it is called.
        manifests: Of its stages.
        *attacked: Rows as `made_up_rows` returns them.
        count: How many images were evaluated; all are right without an attack.
        costs: What the defences cost.
    """
    table = join_results([made_up_rows("none", "clean", 0.0, count, count), *attacked])
    metrics = summarise(table)
    return ComparedRun(
        name=name,
        workdir=f"runs/{name}",
        experiment="digits",
        images_digest="ab" * 32,
        metrics=metrics.to_json(),
        results=table,
        blessing=decide(metrics, EvaluationConfig(min_worst_case_accuracy=0.5)),
        costs=costs,
        manifests=manifests,
    )
