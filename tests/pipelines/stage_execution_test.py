import ast
import pathlib

import pytest

import pipelines
from pipelines import command_line
from pipelines.ablate import ablate
from pipelines.evaluate import evaluate
from pipelines.export import export
from pipelines.fit_defences import fit_all
from pipelines.report import report
from pipelines.stage_execution import execute_stage
from pipelines.train import train
from pipelines.tune import tune
from pipelines.validate import validate
from sfm_tf.artifacts import fingerprints
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError
from tests.pipelines.tiny_digits import digits


def test_says_whether_the_artifact_was_made_or_found(tmp_path, capsys):
    execution = Execution(stage="ingest", modules=["sfm_tf.errors"], configs={}, seed=0, inputs={})
    run_directory = RunDirectory(tmp_path)

    def produce(folder, progress):
        progress.update("images", 2, 2)
        (folder / "records").write_text("x")

    made = execute_stage(execution, run_directory, produce, False)
    first = capsys.readouterr().err
    found = execute_stage(execution, run_directory, produce, False)
    second = capsys.readouterr().err
    assert made == found
    assert "ingest: images 2/2" in first
    assert "ingest: finished in 0.0 s" in first
    assert second.startswith("ingest: found finished")


@pytest.mark.parametrize(
    ("stage", "last_stage", "missing"),
    [
        (validate, None, "ingest"),
        (train, None, "ingest"),
        (tune, None, "ingest"),
        (evaluate, None, "train"),
        (report, None, "evaluate"),
        (export, None, "evaluate"),
        (train, "ingest", "validate"),
        (tune, "ingest", "validate"),
        (ablate, "ingest", "validate"),
        (fit_all, "ingest", "validate"),
    ],
)
def test_a_stage_names_the_one_before_it_that_is_missing(
    stage, last_stage, missing, new_run, tmp_path
):
    run_directory = new_run(last_stage) if last_stage else RunDirectory(tmp_path)
    with pytest.raises(SfmError, match=f"Stage {missing} has not finished"):
        stage(run_directory, digits(), False)


def test_a_mistyped_working_directory_is_not_made(run_program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = run_program(lambda: command_line.start(["pipelines.train"], train), "--workdir=typo")
    assert ended.returncode == 2
    assert "Stage ingest has not finished in typo" in ended.stderr
    assert not list(tmp_path.iterdir())


DATA = {"artifacts", "errors", "records", "settings"}
TRAINING = DATA | {"models", "preprocessors", "training"}
EVALUATION = TRAINING | {"attacks", "audit", "defences", "evaluation"}
TRIALS = TRAINING | {"attacks", "defences", "evaluation", "tuning"}

PACKAGES = {
    "ingest": DATA | {"datasets"},
    "validate": DATA,
    "train": TRAINING,
    "fit_defences": TRAINING | {"defences"},
    "evaluate": EVALUATION,
    "tune": TRIALS,
    "ablate": TRIALS,
    "report": EVALUATION | {"report", "tuning"},
    "export": EVALUATION | {"datasets", "report", "serving", "tuning"},
}
"""What the code of a stage may consist of, by the program that executes it."""


def _stage_modules():
    """Returns the modules that each program names where it makes an `Execution`."""
    found = {}
    for path in pathlib.Path(*pipelines.__path__).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Execution":
                options = {option.arg: option.value for option in node.keywords}
                found[path.stem] = ast.literal_eval(options["modules"])
    return found


STAGE_MODULES = _stage_modules()


def test_every_stage_that_executes_is_in_the_table():
    assert set(STAGE_MODULES) == set(PACKAGES)


@pytest.mark.parametrize("program", PACKAGES)
def test_a_fingerprint_covers_the_packages_of_its_stage_and_no_others(program):
    """No attack, report or server is in train's, so that a change of one trains nothing again."""
    library = fingerprints._LIBRARY_FOLDER
    files = fingerprints.code_files(*STAGE_MODULES[program])
    names = {path.relative_to(library).parts[0].removesuffix(".py") for path in files}
    assert names - {"__init__"} == PACKAGES[program]
