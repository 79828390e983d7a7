"""Writes the report of a finished evaluation: a web page, Markdown and JSON.

    python -m pipelines.report --workdir=runs/cifar10

Reads the latest evaluation and the artifacts it was made from. Results of `pipelines.tune` and
`pipelines.ablate` are included if they are of the same records. This stage measures nothing itself.
Writes <workdir>/report/<fingerprint>/: report.html (one file that needs no network), report.md,
report.json and the figures as PNG and SVG.

    python -m pipelines.report --compare RUN_A RUN_B ...
    python -m pipelines.report --compare=RUN_A,RUN_B --format=json

With --compare it compares the latest evaluations of two or more working directories image by image.
All must have evaluated the same images. Writes compare.html, compare.md and compare.json into
comparison/, or into <workdir>/report/comparison/ if --workdir is given. --format=json prints the
JSON document instead of a summary.
"""

import dataclasses
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from pipelines import command_line
from pipelines.stage_execution import ProgressLine, execute_stage
from sfm_tf import experiments
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.audit.audited_evaluation import read_metrics
from sfm_tf.evaluation.attack_catalogue import attack_rank
from sfm_tf.evaluation.metrics import Metrics
from sfm_tf.evaluation.paired_answers import ALL_THREATS, WORST_CASE, Condition
from sfm_tf.evaluation.threat_models import ThreatModel, default_attacks
from sfm_tf.experiments import Experiment
from sfm_tf.report.collection import collect_inputs, find_studies
from sfm_tf.report.comparison import build_comparison, collect_runs
from sfm_tf.report.document import build_report
from sfm_tf.report.inputs import RowCommand

MODULE = "pipelines.report"
command_line.define_flags(["report"], MODULE)


def report(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the report on the latest evaluation."""
    evaluation = run_directory.latest("evaluate")
    inputs = run_directory.inputs_of(evaluation)
    inputs |= find_studies(run_directory, inputs["ingest"])
    preset, metrics = experiments.preset(experiment.name), read_metrics(evaluation)
    commands = tuple(row_commands(preset, evaluation.manifest, metrics))

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        progress.update("tables and figures", 0, 1)
        collected = collect_inputs(experiment.name, inputs, evaluation, experiment.report, commands)
        build_report(collected, folder)
        progress.update("tables and figures", 1, 1)

    execution = Execution(
        stage="report",
        modules=["sfm_tf.report.collection", "sfm_tf.report.document"],
        configs={"report": experiment.report},
        seed=experiment.seed,
        inputs={**inputs, "evaluate": evaluation},
        source="\n".join(each.command for each in commands),
    )
    return execute_stage(execution, run_directory, produce, force)


def compare(workdirs: Sequence[str], folder: pathlib.Path) -> dict[str, Any]:
    """Writes a comparison of the latest evaluations of working directories.

    Args:
        workdirs: Two or more.
        folder: Where to; made if it is not there.

    Returns:
        What its compare.json holds.

    Raises:
        SfmError: If one has no evaluation, or they are of different images.
    """
    runs = collect_runs(workdirs, [RunDirectory(pathlib.Path(each)) for each in workdirs])
    folder.mkdir(parents=True, exist_ok=True)
    return build_comparison(runs, folder)


_PLACES = frozenset(
    field.name
    for section in experiments.SECTIONS.values()
    for field in dataclasses.fields(section)
    if field.metadata["is_place"]
)
"""Settings that name files of this machine; a command shows their names in capitals instead."""


def reproduction_command(experiment: str, manifests: Sequence[Manifest]) -> str:
    """Returns the command line that makes artifacts and all they were made from.

    Args:
        experiment: Name of the preset that the settings started from.
        manifests: Manifests of the artifacts, the last stage's at the end; its seed is given.
    """
    own = manifests[-1].config.get("evaluation", {}).get("model")
    if not own:
        return _stage_command("run", experiment, manifests)
    # What made a user's own model is not known here, so only what it was evaluated on is made.
    until = "train" if any(manifest.stage == "train" for manifest in manifests) else "validate"
    made = _stage_command("run", experiment, manifests[:-1], f"--until={until}")
    return f"{made} && {_stage_command('evaluate', experiment, manifests[-1:])}"


def _stage_command(program: str, experiment: str, manifests: Sequence[Manifest], *more: str) -> str:
    preset = experiments.preset(experiment)
    flags = [f"--experiment={experiment}", f"--seed={manifests[-1].seed}"]
    flags += [
        flag
        for manifest in manifests
        for section, values in manifest.config.items()
        for flag in changed_flags(config_values(getattr(preset, section)), values)
    ]
    return shlex.join(["python", "-m", f"pipelines.{program}", *flags, *more])


def row_commands(preset: Experiment, manifest: Manifest, metrics: Metrics) -> Iterator[RowCommand]:
    """Yields a command for each row under attack: that of all attackers, then by threat model.

    Where attacks only went on with what the others left (`robust_accuracy_only`), a row depends on
    those before it, so its command runs them too.

    Args:
        preset: What the settings of the evaluation started from.
        manifest: Of the evaluation.
        metrics: Its figures.
    """
    order = [ALL_THREATS, *manifest.config["evaluation"]["threat_models"]]
    for condition in sorted(_conditions(metrics), key=lambda each: order.index(each.threat_model)):
        yield RowCommand(*condition, command=_command(preset, manifest, condition))


def _conditions(metrics: Metrics) -> list[Condition]:
    """Returns the rows in order of first appearance; those of several defences are one."""
    worst_cases = ((e.threat_model, WORST_CASE, e.epsilon) for e in metrics.worst_case)
    any_radius = ((e.threat_model, e.attack, None) for e in metrics.minimum_norm)
    at_radii = ((e.threat_model, e.attack, e.epsilon) for e in metrics.under_attack)
    return [Condition(*row) for row in dict.fromkeys((*at_radii, *any_radius, *worst_cases))]


def _command(preset: Experiment, manifest: Manifest, condition: Condition) -> str:
    settings = manifest.config["evaluation"]
    asked = {**settings, **_narrowed(settings, condition)}
    return shlex.join(
        [
            "python",
            "-m",
            "pipelines.evaluate",
            "--workdir=WORKDIR",
            f"--experiment={preset.name}",
            f"--seed={manifest.seed}",
            *changed_flags(config_values(preset.evaluation), asked),
            *changed_flags(config_values(preset.compared), manifest.config.get("compared", {})),
        ]
    )


def _narrowed(settings: Mapping[str, Any], condition: Condition) -> dict[str, list[Any]]:
    """Returns what of the settings is to be one row's only."""
    narrowed: dict[str, list[Any]] = {}
    if condition.epsilon is not None:
        narrowed["epsilons"] = [condition.epsilon]
    if condition.threat_model == ALL_THREATS:
        return narrowed
    # Which images are left to an attack depends on all who share it, so none can be left out.
    if not settings["robust_accuracy_only"]:
        narrowed["threat_models"] = [condition.threat_model]
    if condition.attack in default_attacks(ThreatModel(condition.threat_model), ()):
        return narrowed  # An attack that belongs to the threat model is not asked for by name.
    if condition.attack != WORST_CASE:
        narrowed["attacks"] = _needed_attacks(settings, condition.attack)
    return narrowed


def _needed_attacks(settings: Mapping[str, Any], attack: str) -> list[str]:
    if not settings["robust_accuracy_only"]:
        return [attack]
    rank = attack_rank(attack)
    return [name for name in settings["attacks"] if attack_rank(name) <= rank]


def changed_flags(preset: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Yields a flag for each setting that is not the preset's; others are of another version."""
    for name, default in preset.items():
        value = values.get(name, default)
        if value != default:
            yield f"--{name}={name.upper() if name in _PLACES else _written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_written, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def define_flags() -> None:
    """Defines what only the program itself takes, not a run of all stages."""
    flags.DEFINE_list(
        "compare",
        None,
        "Working directories to compare. More can follow as arguments.",
        module_name=MODULE,
    )
    flags.DEFINE_enum(
        "format", "text", ["text", "json"], "Format of the printed result.", module_name=MODULE
    )


def _report_and_print(run_directory: RunDirectory, experiment: Experiment, force: bool) -> None:
    artifact = report(run_directory, experiment, force)
    if flags.FLAGS["format"].value == "json":
        print((artifact.folder / "report.json").read_text(encoding="utf-8"), end="")
    else:
        print(f"Report: {artifact.folder / 'report.html'}")


def _compare_and_print(arguments: Sequence[str], workdir: str | None) -> bool:
    """Compares where --compare asks for it, and tells whether it did."""
    if flags.FLAGS["compare"].value is None:
        return False
    folder = pathlib.Path("comparison")
    if workdir:
        folder = RunDirectory(pathlib.Path(workdir)).shared_folder("report", "comparison")
    value = compare([*flags.FLAGS["compare"].value, *arguments], folder)
    if flags.FLAGS["format"].value == "json":
        print((folder / "compare.json").read_text(encoding="utf-8"), end="")
    else:
        print("\n".join([*value["summary"], f"Comparison: {folder / 'compare.html'}"]))
    return True


if __name__ == "__main__":
    define_flags()
    command_line.start([MODULE], _report_and_print, _compare_and_print)
