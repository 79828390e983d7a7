import errno
import functools
import shutil
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from pipelines import command_line, evaluate, train
from sfm_tf import experiments
from sfm_tf.errors import SfmError


def test_every_field_has_a_flag_that_says_what_it_takes():
    text = flags.FLAGS.module_help(train.MODULE)
    assert "--pretraining_epochs" in text
    assert "One of: epoch, step." in text
    assert "(an integer)" in text
    assert "--epsilons" in flags.FLAGS.module_help(evaluate.MODULE)


def test_without_flags_the_preset_is_unchanged():
    assert command_line.experiment_from_flags("cifar10") == experiments.preset("cifar10")


def test_a_flag_overrides_its_field():
    given = {"epochs": "3", "epsilons": "4,8", "attacks": "pgd", "seed": "7", "experiment": "svhn"}
    with flagsaver.as_parsed(**given):
        experiment = command_line.experiment_from_flags("digits")
    values = {"epochs": 3, "epsilons": (4.0, 8.0), "attacks": ("pgd",), "seed": 7}
    assert experiment == experiments.override(experiments.preset("svhn"), values)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("m/own.keras", "/there/m/own.keras"),
        ("~/own.keras", "/home/ann/own.keras"),
        ("/m/own.keras", "/m/own.keras"),
        ("gs://bucket/m", "gs://bucket/m"),
        ("", ""),
    ],
    ids=["relative", "home", "absolute", "address", "none"],
)
def test_no_place_is_kept_relative_to_where_the_program_was_started(given, kept, monkeypatch):
    monkeypatch.setattr("os.getcwd", lambda: "/there")
    monkeypatch.setenv("HOME", "/home/ann")
    with flagsaver.as_parsed(model=given):
        assert command_line.experiment_from_flags(None).evaluation.model == kept


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilons": "8,x"}, "Invalid --epsilons=8,x; expected floats"),
        ({"epsilons": ""}, "Empty --epsilons; give at least one value"),
        ({"attacks": "pdg"}, "Unknown attacks 'pdg'; expected one of noise, fgsm"),
        ({"alternation": "sometimes"}, "Unknown alternation 'sometimes'; expected one of epoch"),
    ],
)
def test_refuses_values_that_no_setting_can_take(values, message):
    with flagsaver.as_parsed(**values), pytest.raises(SfmError, match=message):
        command_line.experiment_from_flags(None)


flags.DEFINE_string("raised", "", "What the stage raises.", module_name="tests.stage")

_RAISED = {
    "user": SfmError("Unknown colour 'rad'; expected one of red, blue."),
    "defect": ZeroDivisionError("division by zero"),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "interrupt": KeyboardInterrupt(),
}


def _stage(run_directory, experiment, force):
    if flags.FLAGS.raised:
        raise _RAISED[flags.FLAGS.raised]
    run_directory.claim(experiment.name)
    print(experiment.name, experiment.seed, force, run_directory.root)


def _main():
    command_line.start(["tests.stage"], _stage)


@pytest.fixture(name="start")
def _start(run_program, tmp_path, monkeypatch):
    """Runs the stage in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(run_program, _main)


def test_runs_the_stage_in_its_working_directory(start):
    ended = start("--workdir=w", "--experiment=cifar10", "--seed=4", "--force")
    assert (ended.returncode, ended.stdout.strip()) == (0, "cifar10 4 True w")


def test_an_alternative_takes_arguments_and_makes_no_directory(run_program, tmp_path, monkeypatch):
    def alternative(arguments, workdir):
        print(arguments, workdir)
        return bool(arguments)

    def main():
        command_line.start(["tests.stage"], _stage, alternative)

    monkeypatch.chdir(tmp_path)
    ended = run_program(main, "a", "--workdir=w", "b")
    assert (ended.returncode, ended.stdout.strip()) == (0, "['a', 'b'] w")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 0, "done"),
        (["--raised=user"], 2, "Error: Unknown colour 'rad'; expected one of red, blue."),
        (["leftover"], 2, "Error: Unexpected argument 'leftover'"),
    ],
)
def test_a_tool_has_no_directory(run_program, tmp_path, monkeypatch, arguments, status, words):
    def tool():
        if flags.FLAGS.raised:
            raise _RAISED[flags.FLAGS.raised]
        print("done")

    monkeypatch.chdir(tmp_path)
    ended = run_program(lambda: command_line.start_tool(["tests.stage"], tool), *arguments)
    assert ended.returncode == status
    assert (ended.stdout + ended.stderr).startswith(words)
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_remembers_the_experiment_of_the_directory(start):
    start("--workdir=w", "--experiment=cifar10")
    assert start("--workdir=w").stdout.startswith("cifar10")


def test_the_default_directory_is_named_after_the_experiment(start):
    assert start().stdout.strip().endswith("runs/digits")


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["--raised=user"], 2, "Error: Unknown colour 'rad'; expected one of red, blue."),
        (["--raised=disk"], 1, "Error: No space left on the disk"),
        (["--raised=defect"], 1, "Error: Unexpected ZeroDivisionError: division by zero."),
        (["--raised=interrupt"], 130, "Interrupted. Finished stages are kept"),
        (["leftover"], 2, "Error: Unexpected argument 'leftover'"),
        (
            ["--sed=4"],
            2,
            "Error: Unknown flag --sed; expected one of --debug, --experiment, --force",
        ),
        (["--experiment=mnist"], 2, "value should be one of"),
    ],
)
def test_every_error_is_one_line(start, arguments, status, line):
    ended = start(*arguments)
    assert ended.returncode == status
    assert line in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr


def test_debug_adds_the_traceback(start):
    ended = start("--raised=defect", "--debug")
    assert "Traceback" in ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith("Error: Unexpected ZeroDivisionError")


def test_help_lists_the_flags_under_their_modules(start, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "Does what the test asks.")
    ended = start("--help")
    assert ended.returncode == 0
    assert "Does what the test asks." in ended.stdout
    assert "the preset that --experiment names" in ended.stdout
    own, shared = ended.stdout.split("pipelines (all stages):")
    assert "tests.stage:" in own
    assert "--raised" in own
    assert "--workdir" in shared


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SfmError("a\nb"), "a b"),
        (OSError(errno.EACCES, "Permission denied", "x"), "Permission denied: 'x'; finished"),
        (RuntimeError("x.tfrecord; No space left on device"), "No space left on the disk"),
        (
            shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a'")] * 9),
            "No space left on the disk ([Errno 28] No space left on device: 'a'); free",
        ),
    ],
)
def test_describes_errors_in_one_line(error, line):
    assert line in command_line.describe(error)
