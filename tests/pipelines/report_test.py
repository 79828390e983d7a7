import dataclasses
import functools
import json
import pathlib
import shlex
import subprocess
import sys
from typing import Any

import pytest
from absl.testing import flagsaver

from pipelines import command_line, evaluate
from pipelines import report as program
from pipelines.report import compare, report, reproduction_command, row_commands
from sfm_tf import experiments
from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.audit.audited_evaluation import evaluation_settings
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.metrics import AttackedAccuracy, MinimumNorm, WorstCase
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.experiments import Experiment
from sfm_tf.report.inputs import RowCommand
from tests import made_up


def manifests(values: dict[str, Any]) -> list[Manifest]:
    """Manifests of the stages of the digits, some settings replaced."""
    experiment = experiments.override(experiments.preset("digits"), values)
    stages = {"ingest": ("data",), "train": ("model", "training"), "evaluate": ("evaluation",)}
    return [
        made_up.manifest(
            stage,
            {name: config_values(getattr(experiment, name)) for name in sections},
            experiment.seed,
        )
        for stage, sections in stages.items()
    ]


@pytest.mark.parametrize(
    ("changed", "flags"),
    [
        ({}, []),
        # Folders of this machine are not told.
        ({"data_dir": "/home/ann/data"}, ["--data_dir=DATA_DIR"]),
        (
            {
                "shards": 2,
                "preprocessor": "none",
                "epochs": 3,
                "epsilons": (4.0, 8.5),
                "robust_accuracy_only": True,
            },
            [
                "--epochs=3",
                "--epsilons=4,8.5",
                "--preprocessor=none",
                "--robust_accuracy_only=true",
                "--shards=2",
            ],
        ),
    ],
)
def test_every_changed_setting_is_a_flag(changed, flags):
    words = shlex.split(reproduction_command("digits", manifests({"seed": 5, **changed})))
    assert words[:5] == ["python", "-m", "pipelines.run", "--experiment=digits", "--seed=5"]
    assert sorted(words[5:]) == flags


def test_a_setting_that_later_versions_do_not_have_is_left_out():
    older = manifests({})
    older[-1].config["evaluation"]["gone"] = 3
    assert "gone" not in reproduction_command("digits", older)


PRESET = experiments.preset("digits")
EVALUATION = dataclasses.replace(
    PRESET.evaluation,
    num_examples=356,
    attacks=("fgsm", "pgd", "cw"),
    threat_models=("black_box", "white_box", "adaptive"),
    epsilons=(8.0, 0.1),
    defences=("undefended", "jpeg+median_2"),
    cw_learning_rate=1e-6,
    restarts=3,
)
COMPARED = dataclasses.replace(PRESET.compared, jpeg="jpeg_50")


def attacked(threat_model: str, attack: str, epsilon: float, defence: str) -> AttackedAccuracy:
    keys = {"threat_model": threat_model, "attack": attack, "epsilon": epsilon}
    figures = {"attack_success": 0.5, "zero_gradient_share": 0.0, **made_up.HALF_RIGHT}
    return AttackedAccuracy(defence=defence, **keys, **figures)


def worst(threat_model: str, epsilon: float | None) -> WorstCase:
    keys = {"defence": "sfm", "threat_model": threat_model, "epsilon": epsilon}
    return WorstCase(**keys, strongest_attack=None, **made_up.HALF_RIGHT)


METRICS = dataclasses.replace(
    made_up.inputs().metrics,
    under_attack=tuple(
        attacked(name, attack, epsilon, defence)
        for defence in ("undefended", "sfm")
        for name, attack in (
            ("white_box", "pgd"),
            ("black_box", "fgsm"),
            ("adaptive", "adaptive_mask_stage"),
        )
        for epsilon in (8.0, 0.1)
    ),
    minimum_norm=(
        MinimumNorm(
            defence="sfm",
            threat_model="white_box",
            attack="cw",
            attack_success=None,
            median_linf=None,
            median_l2=None,
            **made_up.HALF_RIGHT,
        ),
    ),
    worst_case=(worst("white_box", 8.0), worst("white_box", None), worst("all", None)),
)


def commands(
    evaluation: EvaluationConfig = EVALUATION, compared: ComparedConfig = COMPARED, seed: int = 7
) -> dict[tuple, RowCommand]:
    config = {"evaluation": config_values(evaluation), "compared": config_values(compared)}
    manifest = made_up.manifest("evaluate", config, seed)
    return {tuple(each.condition): each for each in row_commands(PRESET, manifest, METRICS)}


def flags_of(command: str) -> dict[str, str]:
    """Returns the flags of a command by name, as a shell would pass them on."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", evaluate.MODULE]
    return dict(word.removeprefix("--").split("=", 1) for word in words[3:])


def asked(command: str) -> Experiment:
    """Returns what `pipelines.evaluate` makes of the flags of a command."""
    with flagsaver.as_parsed(**flags_of(command)):
        return command_line.experiment_from_flags(None)


@pytest.mark.parametrize(
    ("row", "narrowed"),
    [
        (
            ("white_box", "pgd", 8.0),
            {"threat_models": ("white_box",), "attacks": ("pgd",), "epsilons": (8.0,)},
        ),
        (
            ("black_box", "fgsm", 0.1),
            {"threat_models": ("black_box",), "attacks": ("fgsm",), "epsilons": (0.1,)},
        ),
        (
            ("adaptive", "adaptive_mask_stage", 8.0),
            {"threat_models": ("adaptive",), "epsilons": (8.0,)},
        ),
        (("white_box", "cw", None), {"threat_models": ("white_box",), "attacks": ("cw",)}),
        (
            ("white_box", "worst_case", 8.0),
            {"threat_models": ("white_box",), "epsilons": (8.0,)},
        ),
        (("white_box", "worst_case", None), {"threat_models": ("white_box",)}),
        (("all", "worst_case", None), {}),
    ],
)
def test_a_command_has_the_settings_of_the_evaluation_but_for_its_row(row, narrowed):
    command = commands()[row].command
    found = asked(command)
    assert found.evaluation == dataclasses.replace(EVALUATION, **narrowed)
    assert (found.compared, found.name, found.seed) == (COMPARED, "digits", 7)
    assert flags_of(command)["workdir"] == "WORKDIR"


def test_every_row_has_one_command_for_all_defences_and_all_attackers_come_first():
    rows = list(commands())
    assert rows[0] == ("all", "worst_case", None)
    assert [threat_model for threat_model, _, _ in rows] == [
        "all",
        *["black_box"] * 2,
        *["white_box"] * 5,
        *["adaptive"] * 2,
    ]


def test_what_is_the_presets_is_not_repeated():
    metrics_row = ("all", "worst_case", None)
    evaluation = dataclasses.replace(
        PRESET.evaluation, threat_models=("black_box", "white_box", "adaptive")
    )
    command = commands(evaluation, PRESET.compared, seed=0)[metrics_row].command
    assert command == (
        "python -m pipelines.evaluate --workdir=WORKDIR --experiment=digits --seed=0 "
        "--threat_models=black_box,white_box,adaptive"
    )


def test_a_row_that_depends_on_those_before_it_has_them_run_too():
    evaluation = dataclasses.replace(
        EVALUATION, robust_accuracy_only=True, attacks=("apgd_ce", "fgsm", "pgd")
    )
    command = commands(evaluation)[("white_box", "pgd", 8.0)].command
    # The cheap come first whatever their order among the settings; APGD comes after PGD.
    expected = dataclasses.replace(evaluation, attacks=("fgsm", "pgd"), epsilons=(8.0,))
    assert asked(command).evaluation == expected


def test_words_are_quoted_for_a_shell_and_folders_of_this_machine_are_not_told():
    evaluation = dataclasses.replace(EVALUATION, model="/home/ann/my model.keras")
    compared = dataclasses.replace(COMPARED, jpeg="jpeg_5; echo `id` 'x'")
    given = flags_of(commands(evaluation, compared)[("all", "worst_case", None)].command)
    assert given["model"] == "MODEL"
    assert given["jpeg"] == "jpeg_5; echo `id` 'x'"


def test_reports_on_the_latest_evaluation(new_run):
    run_directory = new_run("evaluate")
    evaluation = run_directory.latest("evaluate")
    artifact = report(run_directory, experiments.preset("digits"), False)
    names = {path.name for path in artifact.folder.iterdir()}
    assert {"report.html", "report.md", "report.json", "figures", "manifest.json"} <= names
    value = json.loads((artifact.folder / "report.json").read_text())
    assert value["metrics"] == json.loads((evaluation.folder / "metrics.json").read_text())
    assert artifact.manifest.inputs["evaluate"] == evaluation.manifest.fingerprint


def test_the_report_has_a_command_for_each_row_under_attack(workdirs):
    run_directory = RunDirectory(pathlib.Path(workdirs[0]))
    artifact = report(run_directory, experiments.preset("digits"), False)
    rows = json.loads((artifact.folder / "report.json").read_text())["commands"]
    (row,) = (e for e in rows if (e["threat_model"], e["attack"]) == ("white_box", "fgsm"))
    settings = evaluation_settings(run_directory.latest("evaluate"))
    assert asked(row["command"]).evaluation == dataclasses.replace(
        settings, threat_models=("white_box",), attacks=("fgsm",), epsilons=(16.0,)
    )


def test_a_tuning_of_the_same_records_is_part_of_the_report(new_run):
    run_directory = new_run("evaluate")
    preset = experiments.preset("digits")
    before = report(run_directory, preset, False)
    weights = {"sparsity_weight": 0.2, "semantic_weight": 20.0, "reconstruction_weight": 1.0}
    scores = {"clean": 0.9, "black_box": 0.8, "gray_box": 0.7, "examples": 50, "epsilon": 16.0}
    trial = {**weights, **scores, "epochs": 4, "rho": 1.6, "collapse": "", "failure": ""}

    def tuned(folder):
        write_json(folder / "trials.json", {"trials": [trial]})
        write_json(folder / "best.json", trial)

    execution = Execution(
        stage="tune",
        modules=["sfm_tf.errors"],
        configs={"tuning": preset.tuning},
        seed=0,
        inputs={"ingest": run_directory.latest("ingest")},
    )
    tuning = execute(execution, run_directory, tuned).artifact
    artifact = report(run_directory, preset, False)
    assert artifact.manifest.inputs == {
        **before.manifest.inputs,
        "tune": tuning.manifest.fingerprint,
    }
    (point,) = json.loads((artifact.folder / "report.json").read_text())["tuning"]
    assert (point["sparsity_weight"], point["clean"]) == (0.2, 0.9)


@pytest.fixture(name="workdirs", scope="module")
def _workdirs(new_run):
    """Returns two working directories with the same evaluation."""
    return [str(new_run("evaluate").root), str(new_run("evaluate").root)]


@pytest.fixture(name="run_report")
def _run_report(run_program):
    """Runs the program, whose flags only it takes."""

    def main():
        program.define_flags()
        command_line.start([program.MODULE], program._report_and_print, program._compare_and_print)

    return functools.partial(run_program, main)


def test_compares_working_directories_without_making_one(
    workdirs, tmp_path, run_report, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = run_report("--compare", *workdirs, "--format=json")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "comparison"
    names = {path.name for path in folder.iterdir()}
    assert names == {"compare.html", "compare.md", "compare.json"}
    assert result.stdout == (folder / "compare.json").read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["comparison"]


def test_json_of_the_report_is_printed_for_machines(workdirs):
    root = pathlib.Path(program.__file__).parents[1]
    command = [sys.executable, "-m", "pipelines.report", f"--workdir={workdirs[0]}"]
    result = subprocess.run([*command, "--format=json"], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = (pathlib.Path(workdirs[0]) / "report").glob("*/report.json")
    assert result.stdout == path.read_text("utf-8")


def test_a_comparison_goes_where_it_is_told_to(workdirs, tmp_path):
    value = compare(workdirs, tmp_path / "new" / "comparison")
    assert [run["name"] for run in value["runs"]] == [pathlib.Path(each).name for each in workdirs]
    assert {each["difference"] for pair in value["pairs"] for each in pair["differences"]} == {0.0}
    assert (tmp_path / "new" / "comparison" / "compare.html").exists()


def test_one_run_alone_is_not_compared(workdirs, tmp_path):
    with pytest.raises(SfmError, match="give at least two different working directories"):
        compare(workdirs[:1], tmp_path / "comparison")
    assert not (tmp_path / "comparison").exists()
