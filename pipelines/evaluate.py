"""Attacks the trained models, measures their accuracy under attack, and decides the blessing.

    python -m pipelines.evaluate --workdir=runs/cifar10 --attacks=fgsm,pgd --epsilons=4,8,16
    python -m pipelines.evaluate --workdir=runs/cifar10 --defences=all
    python -m pipelines.evaluate --workdir=runs/cifar10 --model=my_classifier.keras

TFX counterpart: Evaluator. Reads the ingested test images and either the models of
`pipelines.train` or your own classifier (--model). Some of the --defences also need
`pipelines.fit_defences` or `pipelines.train --adversarial_training` to have run.

Writes <workdir>/evaluate/<fingerprint>/: results.parquet (one row per image, defence, threat model,
attack and radius), the adversarial images, metrics.json, costs.json, audit.json, and a file BLESSED
or NOT_BLESSED with the reasons. Ends with the answer in one sentence, the thresholds with pass or
fail, the accuracies and what the audit found. An interrupted run continues after its last finished
batch. Adversarial images of earlier evaluations are reused; --force deletes all of them first.
"""

import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from pipelines import command_line
from pipelines.model_artifacts import model_folders, model_inputs
from pipelines.stage_execution import ProgressLine, execute_stage
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import ADVERSARIAL_STAGE, Artifact, RunDirectory
from sfm_tf.audit.audited_evaluation import (
    evaluation_settings,
    read_metrics,
    write_evaluation,
)
from sfm_tf.audit.blessing import checks, decision_sentence, read_blessing
from sfm_tf.audit.setting_rules import NORM_NAMES, radii_in_words, radius_doubt
from sfm_tf.audit.verdict import AUDIT_FILE, open_points, read_audit, tally
from sfm_tf.defences.catalogue import ALL, TRAINED, expand
from sfm_tf.evaluation.guessing import guessing_doubt
from sfm_tf.evaluation.job import load_job
from sfm_tf.evaluation.results import OWN_MODEL, UNDEFENDED
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.subjects import imported_digest, own_model_kept, without_the_untrained
from sfm_tf.evaluation.threat_models import ThreatModel, none_applies
from sfm_tf.experiments import Experiment
from sfm_tf.records.schema import read_schema
from sfm_tf.report.statements import THREAT_MODEL_NAMES
from sfm_tf.report.tables import accuracy_table, render_text, threshold_table

MODULE = "pipelines.evaluate"
command_line.define_flags(["evaluation", "compared"], MODULE)

_ADVERSARIAL = "adversarial"

_LOOK_FURTHER = (
    "  docs/audit.md explains the checks; a larger --audit_examples tells a warning from chance."
)


def evaluate(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the per-sample results, their summary and the blessing."""
    inputs = model_inputs(run_directory, experiment)
    store = run_directory.shared_folder("evaluate", _ADVERSARIAL)
    schema = read_schema(inputs["ingest"].folder)
    if doubt := radius_doubt(experiment.evaluation):
        _say(doubt)
    if experiment.evaluation.num_examples > schema.split_sizes["test"]:
        _say(
            f"--num_examples={experiment.evaluation.num_examples} is more than the "
            f"{schema.split_sizes['test']} test images there are; all of them are used."
        )
    experiment = dataclasses.replace(
        experiment, evaluation=_possible(experiment.evaluation, inputs, run_directory)
    )

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        if force and store.exists():
            shutil.rmtree(store)
        job = load_job(
            inputs["ingest"].folder,
            model_folders(inputs),
            experiment.evaluation,
            experiment.compared,
            experiment.seed,
            store,
            progress.update,
        )
        # Before the hours of attacks, which a model that is given the wrong images is not worth.
        own = job.models.get(OWN_MODEL)
        if own and (doubt := guessing_doubt(own.classifier, job.samples, schema.class_names)):
            _say(f"warning: {doubt}")
        with own_model_kept(experiment.evaluation, folder, source):
            write_evaluation(job, folder)

    source = imported_digest(experiment.evaluation)
    execution = Execution(
        stage="evaluate",
        modules=["sfm_tf.audit.audited_evaluation"],
        configs={"evaluation": experiment.evaluation, "compared": experiment.compared},
        seed=experiment.seed,
        inputs=inputs,
        source=source,
        resumable=True,
    )
    artifact = execute_stage(execution, run_directory, produce, force, unit="images")
    print(f"\n{answer(artifact)}\n", flush=True)
    return artifact


def answer(evaluation: Artifact) -> str:
    """Returns what an evaluation found: a sentence, tables, and what the audit doubts."""
    metrics, settings = read_metrics(evaluation), evaluation_settings(evaluation)
    findings, verdict = read_audit(evaluation.folder / AUDIT_FILE)
    tables = [
        accuracy_table(metrics, name, f"Accuracy, {title}", settings.epsilons)
        for name, title in THREAT_MODEL_NAMES.items()
        if name in settings.threat_models
    ]
    warnings = any(finding.status == "warn" for finding in findings)
    audit = [
        f"Audit: {tally(findings)}",
        *(f"  {line}" for line in open_points(findings)),
        *([_LOOK_FURTHER] if warnings else []),
    ]
    return "\n\n".join(
        [
            decision_sentence(metrics, read_blessing(evaluation.folder), verdict),
            render_text(threshold_table(checks(metrics, settings, verdict))),
            *(render_text(table.transposed()) for table in tables),
            f"{NORM_NAMES[settings.norm]} radii for values from 0 to 1: {radii_in_words(settings)}",
            "\n".join(audit),
            f"Results: {evaluation.folder}",
        ]
    )


def _say(text: str) -> None:
    print(f"evaluate: {text}", file=sys.stderr)


def _possible(
    config: EvaluationConfig, inputs: Mapping[str, Artifact], run_directory: RunDirectory
) -> EvaluationConfig:
    """Returns the settings without what nothing is there for, and says what is left out."""
    trainer = f"python -m pipelines.train {run_directory.flag}"
    defences = without_the_untrained(expand(config.defences), ADVERSARIAL_STAGE in inputs)
    if ALL in config.defences and len(defences) < len(expand(config.defences)):
        _say(
            "the adversarially trained defences are left out, because none is there; "
            f"`{trainer} --adversarial_training=trades` trains them."
        )
    trained = [name for name in defences if name in (UNDEFENDED, *TRAINED)]
    if config.model and trained:
        _say(f"{', '.join(trained)} are left out, because --model takes the trained models' place.")
    without = _without_target(config.model, defences)
    if "train" not in inputs and not config.source_model:
        without[ThreatModel.BLACK_BOX] = (
            "there is no source model of these records; give one with --source_model, or train one "
            f"with `{trainer}`"
        )
    left_out = {each.value: why for each, why in without.items()}
    for name in config.threat_models:
        if name in left_out:
            _say(f"the threat model {name} is left out, because {left_out[name]}.")
    kept = tuple(name for name in config.threat_models if name not in left_out)
    if not kept:
        raise none_applies(config.threat_models)
    return dataclasses.replace(config, defences=defences, threat_models=kept)


def _without_target(model: str, defences: Sequence[str]) -> dict[ThreatModel, str]:
    """Returns the threat models that aim at what none of the evaluated models has, with why."""
    trained = () if model else set(defences).intersection(TRAINED)
    masked = set(trained) - {"adversarial_training"}
    chained = set(defences) - {UNDEFENDED, *TRAINED}
    found = {}
    if not masked:
        found[ThreatModel.ADAPTIVE] = "it aims at a mask, and no evaluated model has one"
    if not masked and not chained:
        found[ThreatModel.UNDEFENDED] = "it ignores a defence, and no evaluated model has one"
    return found


if __name__ == "__main__":
    # Not where `run` imports this: there, --batch_size is that of training.
    flags.DEFINE_alias("batch_size", "attack_batch_size", module_name=MODULE)
    command_line.start([MODULE], evaluate)
