"""Runs the stages in order and skips those that are finished already.

    python -m pipelines.run --experiment=digits
    python -m pipelines.run --workdir=runs/cifar10 --from=evaluate --until=report

TFX counterpart: the pipeline runner. At the end it prints the accuracies, where the report and the
exported model are, and the command that serves the model. --force repeats finished stages, too.
"""

import pathlib
import shlex
from collections.abc import Callable, Mapping

from absl import flags

from pipelines import command_line, evaluate, export, fit_defences, ingest, report, train, validate
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.defences.chains import check_defences
from sfm_tf.errors import SfmError
from sfm_tf.experiments import Experiment
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving.push_record import read_push
from sfm_tf.serving.versions import is_remote, served_version

MODULE = "pipelines.run"

STAGES: dict[str, command_line.Stage] = {
    "ingest": ingest.ingest,
    "validate": validate.validate,
    "train": train.train,
    "fit_defences": fit_defences.fit_defences,
    "evaluate": evaluate.evaluate,
    "report": report.report,
    "export": export.export,
}
"""The stages in the order they run."""

_FROM = flags.DEFINE_enum("from", "ingest", list(STAGES), "First stage to run.", module_name=MODULE)
_UNTIL = flags.DEFINE_enum(
    "until", "export", list(STAGES), "Last stage to run.", module_name=MODULE
)

_REST_PORT = 8501  # TensorFlow Serving's own.
_SERVING_IMAGE = "tensorflow/serving:2.20.0"


def run(run_directory: RunDirectory, experiment: Experiment, force: bool) -> None:
    """Runs the stages that were asked for and prints after each what to look at.

    Raises:
        SfmError: If a stage fails, or the flags contradict each other.
    """
    names = _selected_stages()
    _check_settings(experiment)
    for name in names:
        artifact = STAGES[name](run_directory, experiment, force)
        if name in RESULTS:
            print(f"\n{RESULTS[name](run_directory, artifact)}\n", flush=True)


def _selected_stages() -> list[str]:
    """Returns the stages from --from until --until, whose flags alone may be given."""
    names = list(STAGES)
    first, last = names.index(_FROM.value), names.index(_UNTIL.value)
    if first > last:
        raise SfmError(
            f"--from={_FROM.value} comes after --until={_UNTIL.value}; the order is "
            f"{', '.join(names)}."
        )
    by_module = flags.FLAGS.flags_by_module_dict()
    for name in [*names[:first], *names[last + 1 :]]:
        for flag in by_module.get(f"pipelines.{name}", ()):
            if flag.present:
                raise SfmError(
                    f"--{flag.name} is a setting of stage {name}, which does not run with "
                    f"--from={_FROM.value} --until={_UNTIL.value}; leave it out or run that stage."
                )
    return names[first : last + 1]


def _check_settings(experiment: Experiment) -> None:
    """Refuses before the first stage what a later one would refuse."""
    if experiment.training_execution.strategy == "multi_worker":
        raise SfmError(
            "Only the train stage runs on several machines. Start `python -m pipelines.train "
            "--strategy=multi_worker` on each worker first, then run this without --strategy."
        )
    parse_preprocessor(experiment.model.preprocessor, experiment.model.surrogate)
    check_defences(experiment.evaluation.defences, experiment.compared)


def report_path(run_directory: RunDirectory, report: Artifact) -> str:
    """Returns where the report is."""
    return f"Report: {report.folder / 'report.html'}"


def serving_command(run_directory: RunDirectory, export: Artifact) -> str:
    """Returns where the model is that a server loads, and the command that serves it."""
    versions = read_push(export.folder, run_directory.root).versions
    serving_dir, _, name = versions.rpartition("/")
    served = served_version(versions)
    if is_remote(versions):
        place = ["-e", f"MODEL_BASE_PATH={serving_dir}"]
    else:
        place = ["-v", f"{pathlib.Path(versions).resolve()}:/models/{name}"]
    ports = f"127.0.0.1:{_REST_PORT}:{_REST_PORT}"
    command = ["docker", "run", "-p", ports, *place, "-e", f"MODEL_NAME={name}", _SERVING_IMAGE]
    folder = f"{versions}/{served.number}" if served else versions
    return f"SavedModel: {folder}\nServe it: {shlex.join(command)}"


RESULTS: Mapping[str, Callable[[RunDirectory, Artifact], str]] = {
    "report": report_path,
    "export": serving_command,
}
"""What to say of the artifact of a stage that does not say it itself."""


def main() -> None:
    """Starts the program, whose flags are those of all stages."""
    command_line.start([MODULE, *(f"pipelines.{name}" for name in STAGES)], run)


if __name__ == "__main__":
    main()
