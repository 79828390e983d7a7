"""What tests of later stages start from: records of real digits, untrained models and their
evaluation, each as its stage would leave it."""

import pathlib

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.audit.audited_evaluation import write_evaluation
from sfm_tf.datasets.ingestion import ingest, source_version
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.evaluation.job import load_job
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.subjects import ModelFolders
from sfm_tf.models.settings import ModelConfig
from sfm_tf.records.schema import read_schema
from sfm_tf.training import model_files
from sfm_tf.training.model_building import ModelFactory, Seeds, read_channel_statistics

_MODULES = ["sfm_tf.errors"]


def make_records(run_directory: RunDirectory) -> Artifact:
    """Leaves 100 real digits to train on and 20 to test on, as the ingest stage would."""
    config = DataConfig(shards=1, max_train_examples=100, max_test_examples=20)

    def produce(folder: pathlib.Path) -> None:
        ingest(config, 0, folder, lambda *_: None)

    execution = Execution(
        stage="ingest",
        modules=_MODULES,
        configs={"data": config},
        seed=0,
        inputs={},
        source=source_version(config),
    )
    return execute(execution, run_directory, produce).artifact


def make_models(run_directory: RunDirectory, records: Artifact) -> Artifact:
    """Leaves untrained models with the history of one epoch, as the train stage would."""
    config = ModelConfig(classifier_width=4, masker_width=4, masker_depth=1)

    def produce(folder: pathlib.Path) -> None:
        schema = read_schema(records.folder)
        statistics = read_channel_statistics(records.folder)
        factory = ModelFactory(config, schema, statistics, Seeds.spawn(0))
        source = factory.source().classifier
        model_files.save_models(folder, factory.defended(), source, schema.class_names)
        measured = {"classification_loss": 2.3, "accuracy": 0.1}
        epoch = {"stage": "source", "training": measured, "validation": {"bare_accuracy": 0.1}}
        write_json(folder / model_files.HISTORY_FILE, {"defence": [epoch], "source": [epoch]})
        seconds = dict.fromkeys(("classifier_seconds", "masker_seconds", "source_seconds"), 1.0)
        write_json(folder / model_files.TIMING_FILE, seconds)

    execution = Execution(
        stage="train",
        modules=_MODULES,
        configs={"model": config},
        seed=0,
        inputs={"ingest": records},
    )
    return execute(execution, run_directory, produce).artifact


def make_evaluation(run_directory: RunDirectory, *, min_accuracy: float = 0.0) -> Artifact:
    """Leaves records, models and an FGSM evaluation of 12 images, as the three stages would.

    Args:
        run_directory: Where to.
        min_accuracy: Clean accuracy needed for BLESSED; 0 blesses even untrained models.
    """
    records = make_records(run_directory)
    models = make_models(run_directory, records)
    config = EvaluationConfig(
        num_examples=12,
        attacks=("fgsm",),
        epsilons=(16.0,),
        audit_examples=0,
        required_audit="not_credible",
        min_clean_accuracy=min_accuracy,
        max_clean_drop=1.0,
        min_worst_case_accuracy=0.0,
    )

    def produce(folder: pathlib.Path) -> None:
        job = load_job(
            records.folder,
            ModelFolders(models.folder),
            config,
            ComparedConfig(),
            0,
            run_directory.shared_folder("evaluate", "adversarial"),
            lambda *_: None,
        )
        write_evaluation(job, folder)

    execution = Execution(
        stage="evaluate",
        modules=_MODULES,
        configs={"evaluation": config, "compared": ComparedConfig()},
        seed=0,
        inputs={"ingest": records, "train": models},
    )
    return execute(execution, run_directory, produce).artifact
