import json
import os
import pathlib
import subprocess
import sys

import pytest

from pipelines import run
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.run_directory import RunDirectory


def test_the_model_comes_with_the_command_that_serves_it(tmp_path, capsys):
    version = tmp_path / "models" / "digits" / "3"
    execution = Execution(stage="export", module="sfm_tf.errors", configs={}, seed=0, inputs={})

    def produce(folder):
        (folder / "pushed.json").write_text(json.dumps({"folder": str(version)}))

    run.say("export", execute(execution, RunDirectory(tmp_path), produce).artifact)
    text = capsys.readouterr().out
    assert f"SavedModel: {version}" in text
    assert f"-v '{version.parent}:/models/digits' -e MODEL_NAME=digits" in text


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


def _run(workdir, *flags):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.run", f"--workdir={workdir}", *flags],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_runs_every_stage_and_then_finds_them_finished(tmp_path):
    first = _run(tmp_path / "run", *_TINY)
    assert first.returncode == 0, first.stderr
    for words in ("Accuracy, white box", "report.html", "serving/sfm_defended/1", "Serve it: "):
        assert words in first.stdout
    for stage in ("ingest", "validate", "train", "evaluate", "report", "export"):
        assert f"{stage}: finished in" in first.stderr
    assert "Traceback" not in first.stderr
    assert "WARNING" not in first.stderr

    second = _run(tmp_path / "run", *_TINY)
    assert second.stdout == first.stdout
    assert second.stderr.count("found finished") == 6, second.stderr

    part = _run(tmp_path / "run", *_EVALUATION, "--from=evaluate", "--until=report")
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
def test_refuses_what_it_cannot_do_in_one_line(tmp_path, flags, message):
    result = _run(tmp_path / "run", *flags)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


def test_help_lists_the_flags_of_every_stage(tmp_path):
    result = _run(tmp_path, "--help")
    assert result.returncode == 0
    for name in ("run", "ingest", "validate", "train", "evaluate", "report", "export"):
        assert f"pipelines.{name}:" in result.stdout
