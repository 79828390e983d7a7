import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Any

import pytest
from absl.testing import flagsaver

from pipelines import command_line, evaluate
from pipelines import report as program
from pipelines.report import compare, report, reproduction_command
from sfm_tf import experiments, testing
from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.audit.audited_evaluation import evaluation_settings
from sfm_tf.errors import SfmError


def manifests(values: dict[str, Any]) -> list[Manifest]:
    """Manifests of the stages of the digits, some settings replaced."""
    experiment = experiments.override(experiments.preset("digits"), values)
    stages = {"ingest": ("data",), "train": ("model", "training"), "evaluate": ("evaluation",)}
    return [
        Manifest(
            stage=stage,
            fingerprint=stage,
            config={name: config_values(getattr(experiment, name)) for name in sections},
            seed=experiment.seed,
            inputs={},
            content="",
            code_version="",
            package_versions={},
            started="",
            wall_seconds=0.0,
        )
        for stage, sections in stages.items()
    ]


def test_a_preset_needs_no_further_flags():
    command = reproduction_command("digits", manifests({}))
    assert command == "python -m pipelines.run --experiment=digits --seed=0"


def test_every_changed_setting_is_a_flag():
    changed = {
        "seed": 5,
        "shards": 2,
        "preprocessor": "none",
        "epochs": 3,
        "epsilons": (4.0, 8.5),
        "attacks": ("fgsm",),
        "robust_accuracy_only": True,
    }
    words = shlex.split(reproduction_command("digits", manifests(changed)))
    assert words[:5] == ["python", "-m", "pipelines.run", "--experiment=digits", "--seed=5"]
    assert sorted(words[5:]) == [
        "--attacks=fgsm",
        "--epochs=3",
        "--epsilons=4,8.5",
        "--preprocessor=none",
        "--robust_accuracy_only=true",
        "--shards=2",
    ]


def test_folders_of_this_machine_are_not_told():
    command = reproduction_command("digits", manifests({"data_dir": "/home/ann/data"}))
    assert "ann" not in command
    assert command.endswith(" --data_dir=DATA_DIR")


def test_a_setting_that_later_versions_do_not_have_is_left_out():
    older = manifests({})
    older[-1].config["evaluation"]["gone"] = 3
    assert "gone" not in reproduction_command("digits", older)


def test_reports_on_the_latest_evaluation(tmp_path):
    run_directory = RunDirectory(tmp_path)
    evaluation = testing.make_evaluation(run_directory)
    artifact = report(run_directory, experiments.preset("digits"), False)
    names = {path.name for path in artifact.folder.iterdir()}
    assert {"report.html", "report.md", "report.json", "figures", "manifest.json"} <= names
    value = json.loads((artifact.folder / "report.json").read_text())
    assert value["metrics"] == json.loads((evaluation.folder / "metrics.json").read_text())
    assert artifact.manifest.inputs["evaluate"] == evaluation.manifest.fingerprint


def test_a_rows_command_has_flags_that_the_program_takes_and_the_rows_settings(workdirs):
    run_directory = RunDirectory(pathlib.Path(workdirs[0]))
    artifact = report(run_directory, experiments.preset("digits"), False)
    commands = json.loads((artifact.folder / "report.json").read_text())["commands"]
    (row,) = (e for e in commands if (e["threat_model"], e["attack"]) == ("white_box", "fgsm"))
    words = shlex.split(row["command"])
    assert words[:3] == ["python", "-m", evaluate.MODULE]
    given = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
    with flagsaver.as_parsed(**given):
        asked = command_line.experiment_from_flags(None)
    settings = evaluation_settings(run_directory.latest("evaluate"))
    assert asked.evaluation == dataclasses.replace(
        settings, threat_models=("white_box",), attacks=("fgsm",), epsilons=(16.0,)
    )
    assert (asked.name, asked.seed) == ("digits", 0)


def test_a_tuning_of_the_same_records_is_part_of_the_report(tmp_path):
    run_directory = RunDirectory(tmp_path)
    testing.make_evaluation(run_directory)
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
        module="sfm_tf.testing",
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
def _workdirs(tmp_path_factory):
    """Returns two working directories with the same evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = RunDirectory(folder / "first"), folder / "second"
    first.claim("digits")
    testing.make_evaluation(first)
    second.mkdir()
    for stage in ("ingest", "train", "evaluate"):
        (second / stage).symlink_to(first.root / stage)
    return [str(first.root), str(second)]


def _run(folder, *arguments):
    root = pathlib.Path(program.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", "pipelines.report", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_compares_working_directories_without_making_one(workdirs, tmp_path):
    result = _run(tmp_path, "--compare", *workdirs, "--format=json")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "comparison"
    names = {path.name for path in folder.iterdir()}
    assert names == {"compare.html", "compare.md", "compare.json"}
    assert result.stdout == (folder / "compare.json").read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["comparison"]


def test_json_of_the_report_is_printed_for_machines(workdirs, tmp_path):
    result = _run(tmp_path, f"--workdir={workdirs[0]}", "--format=json")
    assert result.returncode == 0, result.stderr
    (path,) = (pathlib.Path(workdirs[0]) / "report").glob("*/report.json")
    assert result.stdout == path.read_text("utf-8")


def test_a_comparison_goes_where_it_is_told_to(workdirs, tmp_path):
    value = compare(workdirs, tmp_path / "new" / "comparison")
    assert [run["name"] for run in value["runs"]] == ["first", "second"]
    assert {each["difference"] for pair in value["pairs"] for each in pair["differences"]} == {0.0}
    assert (tmp_path / "new" / "comparison" / "compare.html").exists()


def test_one_run_alone_is_not_compared(workdirs, tmp_path):
    with pytest.raises(SfmError, match="give at least two different working directories"):
        compare(workdirs[:1], tmp_path / "comparison")
    assert not (tmp_path / "comparison").exists()


def test_needs_an_evaluation(tmp_path):
    with pytest.raises(SfmError, match="Stage evaluate has not finished"):
        report(RunDirectory(tmp_path), experiments.preset("digits"), False)
