"""Attacks the trained models, scores them on what the attacks make, and blesses them or not.

    python -m pipelines.evaluate --workdir=runs/cifar10 --attacks=fgsm,pgd --epsilons=4,8,16
    python -m pipelines.evaluate --workdir=runs/cifar10 --model=my_classifier.keras

TFX counterpart: Evaluator. Reads the models of `pipelines.train`, or a classifier of your own, and
the ingested test images they have not seen. Writes into <workdir>/evaluate/<fingerprint>/
results.parquet (a row per image, defence, threat model, attack and radius), the adversarial images,
metrics.json, and BLESSED or NOT_BLESSED with the reasons. A run that was interrupted does no
finished batch again, and adversarial images that another evaluation made are used again; --force
deletes them all first.
"""

import dataclasses
import pathlib
import shutil
import sys

from absl import flags

from pipelines import command_line, flag_definitions
from pipelines.progress_line import ProgressLine
from pipelines.stage_execution import execute_stage
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.attacks.threat_models import ThreatModel
from sfm_tf.config import EvaluationConfig, Experiment
from sfm_tf.evaluation.stored_evaluation import write_evaluation
from sfm_tf.evaluation.subjects import imported_digest, load_subjects
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import read_schema

MODULE = "pipelines.evaluate"
flag_definitions.define_flags(["evaluation"], MODULE)


_ADVERSARIAL = "adversarial"


def evaluate(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the per-sample results, their summary and the blessing."""
    inputs = _inputs(run_directory, experiment.evaluation)
    records = inputs["ingest"]
    store = run_directory.shared_folder("evaluate", _ADVERSARIAL)
    config = _possible(experiment.evaluation, has_source="train" in inputs)

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        if force and store.exists():
            shutil.rmtree(store)
        schema = read_schema(records.folder)
        models = inputs["train"].folder if "train" in inputs else None
        subjects = load_subjects(config, models, schema)
        images, labels = load_split(records.folder, "test", schema, config.num_examples)
        write_evaluation(
            subjects.models,
            subjects.source,
            images,
            labels,
            config,
            experiment.seed,
            folder,
            store,
            progress.update,
        )

    execution = Execution(
        stage="evaluate",
        module=MODULE,
        configs={"evaluation": config},
        seed=experiment.seed,
        inputs=inputs,
        source=imported_digest(config),
        resumable=True,
    )
    return execute_stage(execution, run_directory, produce, force, unit="images")


def _inputs(run_directory: RunDirectory, config: EvaluationConfig) -> dict[str, Artifact]:
    if config.model:
        return {"ingest": run_directory.latest("ingest")}
    models = run_directory.latest("train")
    return {"ingest": run_directory.input_of(models, "ingest"), "train": models}


def _possible(config: EvaluationConfig, has_source: bool) -> EvaluationConfig:
    """Returns the settings without the black box where nothing is there to start it from."""
    black_box = ThreatModel.BLACK_BOX.value
    if has_source or config.source_model or black_box not in config.threat_models:
        return config
    print(
        "evaluate: there is no model to start the black box from, so it is left out; "
        "--source_model names one.",
        file=sys.stderr,
    )
    kept = tuple(name for name in config.threat_models if name != black_box)
    return dataclasses.replace(config, threat_models=kept)


if __name__ == "__main__":
    # Not where `run` imports this: there, --batch_size is that of training.
    flags.DEFINE_alias("batch_size", "attack_batch_size", module_name=MODULE)
    command_line.start([MODULE], evaluate)
