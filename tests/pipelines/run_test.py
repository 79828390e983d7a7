import functools
import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from pipelines import run
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("serving_dir", "place"),
    [
        ("models", "-v={root}/models/digits:/models/digits"),
        ("memory://bucket/models", "-e=MODEL_BASE_PATH=memory://bucket/models"),
    ],
    ids=["folder", "address"],
)
def test_the_model_comes_with_the_command_that_serves_it(tmp_path, serving_dir, place):
    run_directory = RunDirectory(tmp_path / "ann's first run")
    execution = Execution(stage="export", modules=["sfm_tf.errors"], configs={}, seed=0, inputs={})
    values = {"serving_dir": serving_dir, "model_name": "digits", "version": 3, "verification": {}}

    def produce(folder):
        (folder / "pushed.json").write_text(json.dumps(values))

    if serving_dir == "models":
        version = run_directory.root / "models" / "digits" / "4"
        version.mkdir(parents=True)
        (version / "saved_model.pb").touch()
    text = run.serving_command(run_directory, execute(execution, run_directory, produce).artifact)
    saved, command = text.splitlines()
    if serving_dir == "models":
        assert saved == f"SavedModel: {version}"  # What a server loads, not what was pushed last.
    words = shlex.split(command.removeprefix("Serve it: "))
    option, _, value = place.format(root=run_directory.root).partition("=")
    assert words[words.index(option) + 1] == value
    assert words[-3:] == ["-e", "MODEL_NAME=digits", "tensorflow/serving:2.20.0"]


_ROOT = pathlib.Path(__file__).resolve().parents[2]
_EVALUATION = (
    "--num_examples=16",
    "--attacks=fgsm",
    "--epsilons=8",
    "--audit_examples=0",
    "--required_audit=not_credible",
    "--min_clean_accuracy=0",
    "--max_clean_drop=1",
    "--min_worst_case_accuracy=0",
)
_TINY = (
    "--max_train_examples=300",
    "--classifier_width=4",
    "--masker_width=4",
    "--masker_depth=1",
    "--pretraining_epochs=1",
    "--epochs=1",
    "--source_epochs=1",
    *_EVALUATION,
)


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        ([], "ingest validate train fit_defences evaluate report export"),
        (["--from=train", "--until=report", "--epochs=3"], "train fit_defences evaluate report"),
    ],
)
def test_runs_the_stages_that_are_asked_for_in_order_and_says_what_they_made(
    arguments, stages, records, tmp_path, run_program, monkeypatch
):
    done = []

    def stage(name, run_directory, experiment, force):
        done.append(name)
        return records

    for name in run.STAGES:
        monkeypatch.setitem(run.STAGES, name, functools.partial(stage, name))
    monkeypatch.setitem(run.RESULTS, "export", lambda *given: "Serve it: docker run")
    ended = run_program(run.main, f"--workdir={tmp_path / 'run'}", *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert done == stages.split()
    assert f"Report: {records.folder / 'report.html'}" in ended.stdout
    assert ("Serve it: docker run" in ended.stdout) == ("export" in done)


@pytest.mark.slow
def test_runs_every_stage_and_then_finds_them_finished(tmp_path, run_program):
    workdir = f"--workdir={tmp_path / 'run'}"
    # In a process of its own: what TensorFlow prints when it starts must not show.
    first = subprocess.run(
        [sys.executable, "-m", "pipelines.run", workdir, *_TINY],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert first.returncode == 0, first.stderr
    for words in ("Accuracy, white box", "report.html", "serving/sfm_defended/1", "Serve it: "):
        assert words in first.stdout
    for stage in ("ingest", "validate", "train", "evaluate", "report", "export"):
        assert f"{stage}: finished in" in first.stderr
    assert "Traceback" not in first.stderr
    assert "WARNING" not in first.stderr

    second = run_program(run.main, workdir, *_TINY)
    assert second.stdout == first.stdout
    assert second.stderr.count("found finished") == 6, second.stderr

    part = run_program(run.main, workdir, *_EVALUATION, "--from=evaluate", "--until=report")
    assert [line.split(":")[0] for line in part.stderr.splitlines()] == ["evaluate", "report"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--from=report", "--until=train"], "Error: --from=report comes after --until=train"),
        (["--from=evaluate"], "Error: Stage train has not finished in"),
        (["--from=evaluate", "--epochs=5"], "Error: --epochs is a setting of stage train, which"),
        (["--preprocessor=blur_3"], "Error: Unknown"),
        (["--epochs=0"], "Error: Invalid epochs 0; expected at least 1."),
    ],
)
def test_refuses_what_it_cannot_do_in_one_line(tmp_path, run_program, flags, message):
    result = run_program(run.main, f"--workdir={tmp_path / 'run'}", *flags)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


def test_help_lists_the_flags_of_every_stage(run_program):
    result = run_program(run.main, "--help")
    assert result.returncode == 0
    for name in ("run", "ingest", "validate", "train", "evaluate", "report", "export"):
        assert f"pipelines.{name}:" in result.stdout
