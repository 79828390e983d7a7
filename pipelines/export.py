"""Exports a blessed model as a SavedModel, checks it in a fresh process, and pushes it.

    python -m pipelines.export --workdir=runs/cifar10 --serving_dir=models --model_name=cifar10

TFX counterparts: InfraValidator and Pusher. Exports the model that the latest evaluation blessed:
SFM-Defence or, if that was not among --defences, the first defence named there. If that was a model
of your own (--model), it is exported as it was when it was evaluated: the evaluation keeps a copy.

Writes <serving_dir>/<model_name>/<version>/: a SavedModel of the whole defended pipeline with its
model card and manifest. Writes <workdir>/export/<fingerprint>/pushed.json: the comparison of the
served answers with the evaluated ones, the latency and the memory. A model that was pushed before
is pushed again only with --force, also where a rollback made a server load another one.
"""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Mapping

from pipelines import command_line
from pipelines.model_artifacts import model_folders
from pipelines.report import reproduction_command
from pipelines.stage_execution import ProgressLine, execute_stage
from sfm_tf import experiments
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.experiments import Experiment
from sfm_tf.report.collection import collect_card_inputs
from sfm_tf.serving import pushing
from sfm_tf.serving.push_record import (
    PushRecord,
    located,
    portable_address,
    read_push,
    write_push,
)
from sfm_tf.serving.verification import describe_performance, read_performance
from sfm_tf.serving.versions import ServedVersion, served_version

MODULE = "pipelines.export"
command_line.define_flags(["export"], MODULE)


def export(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the record of the pushed version, and prints how fast the model answers.

    Raises:
        SfmError: If the model is not blessed, or does not answer as it was evaluated.
    """
    evaluation = run_directory.latest("evaluate")
    inputs = run_directory.inputs_of(evaluation)
    root = run_directory.root
    recorded = portable_address(experiment.export.serving_dir, root)
    config = dataclasses.replace(experiment.export, serving_dir=recorded)

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        progress.update("checking in a fresh process", 0, 1)
        evaluated = _load(experiment.name, inputs, evaluation)
        place = dataclasses.replace(config, serving_dir=located(recorded, root))
        pushed = pushing.push_blessed(evaluated, place, folder)
        write_push(folder, pushed, recorded, config.model_name, root)
        progress.update("checking in a fresh process", 1, 1)

    execution = Execution(
        stage="export",
        modules=["sfm_tf.serving.pushing", "sfm_tf.report.collection"],
        # How many older versions are kept changes nothing of what is pushed.
        configs={"export": dataclasses.replace(config, keep_versions=0)},
        seed=experiment.seed,
        inputs={**inputs, "evaluate": evaluation},
    )
    artifact = execute_stage(execution, run_directory, produce, force)
    push = read_push(artifact.folder, root)
    served = served_version(push.versions)
    if served is None:
        print(f"export: no version is left in {push.versions}; pushing again", file=sys.stderr)
        artifact = execute_stage(execution, run_directory, produce, True)
        push = read_push(artifact.folder, root)
    elif push.version not in (served.number, served.original):
        print(f"export: {_passed_over(push, served, root, experiment)}", file=sys.stderr)
    performance = read_performance(push.verification["performance"])
    print(f"export: {describe_performance(performance)}", file=sys.stderr)
    return artifact


def _passed_over(
    push: PushRecord, served: ServedVersion, root: pathlib.Path, experiment: Experiment
) -> str:
    """Returns what to say where a server loads another model: somebody rolled back, or pushed."""
    was = "newer" if served.number > push.version else "older"
    if served.original < served.number:
        was = f"a copy of version {served.original}"
    preset = config_values(experiments.preset(experiment.name).export)
    given = config_values(experiment.export).items()
    changed = [f"--{name}={value}" for name, value in given if value != preset[name]]
    flags = [f"--workdir={root}", *changed, "--force"]
    return (
        f"version {push.version} was pushed before, and a server loads version {served.number}, "
        f"which is {was}. That is left as it is; to push this model again: "
        f"{shlex.join(['python', '-m', 'pipelines.export', *flags])}"
    )


def _load(
    experiment: str, inputs: Mapping[str, Artifact], evaluation: Artifact
) -> pushing.EvaluatedModel:
    card = collect_card_inputs(experiment, inputs, evaluation)
    command = reproduction_command(experiment, card.manifests)
    folders = model_folders(inputs)
    return pushing.load_evaluated(inputs["ingest"], evaluation, folders, card, command)


if __name__ == "__main__":
    command_line.start([MODULE], export)
