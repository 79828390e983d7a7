import errno
import os
import subprocess
import sys
import textwrap

import pytest
from absl import flags
from absl.testing import flagsaver

from pipelines import command_line, evaluate, train
from sfm_tf.errors import SfmError


def test_every_field_has_a_flag_that_says_what_it_takes():
    text = flags.FLAGS.module_help(train.MODULE)
    assert "--pretraining_epochs" in text
    assert "One of: epoch, step." in text
    assert "(an integer)" in text
    assert "--epsilons" in flags.FLAGS.module_help(evaluate.MODULE)


def test_without_flags_the_preset_is_unchanged():
    experiment = command_line.experiment_from_flags("cifar10")
    assert experiment.name == "cifar10"
    assert experiment.training.epochs == 50


def test_a_flag_overrides_its_field():
    with flagsaver.as_parsed(epochs="3", epsilons="4,8", attacks="pgd", seed="7"):
        experiment = command_line.experiment_from_flags(None)
    assert experiment.training.epochs == 3
    assert experiment.evaluation.epsilons == (4.0, 8.0)
    assert experiment.evaluation.attacks == ("pgd",)
    assert experiment.seed == 7


def test_the_experiment_flag_wins_over_the_owner():
    with flagsaver.as_parsed(experiment="svhn"):
        assert command_line.experiment_from_flags("digits").name == "svhn"


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


_STAGE = '''
"""Does what the test asks."""
import errno
from absl import flags
from pipelines import command_line
from sfm_tf.errors import SfmError

flags.DEFINE_string("raise", "", "What to raise.", module_name="tests.stage")

def stage(run_directory, experiment, force):
    kind = flags.FLAGS["raise"].value
    if kind == "user":
        raise SfmError("Unknown colour 'rad'; expected one of red, blue.")
    if kind == "defect":
        raise ZeroDivisionError("division by zero")
    if kind == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if kind == "interrupt":
        raise KeyboardInterrupt
    print(experiment.name, experiment.seed, force, run_directory.root)

if __name__ == "__main__":
    command_line.start(["tests.stage"], stage)
'''


def _run(tmp_path, *arguments, program=_STAGE):
    path = tmp_path / "stage.py"
    path.write_text(textwrap.dedent(program))
    root = os.path.dirname(os.path.dirname(os.path.abspath(command_line.__file__)))
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )


def test_runs_the_stage_in_its_working_directory(tmp_path):
    result = _run(tmp_path, "--workdir=w", "--experiment=cifar10", "--seed=4", "--force")
    assert (result.returncode, result.stdout.strip()) == (0, "cifar10 4 True w")


def test_what_is_done_instead_takes_arguments_and_makes_no_directory(tmp_path):
    program = _STAGE.replace('["tests.stage"], stage)', '["tests.stage"], stage, instead)')
    program = program.replace(
        "def stage(",
        "def instead(arguments, workdir):\n"
        "    print(arguments, workdir)\n"
        "    return bool(arguments)\n\n"
        "def stage(",
    )
    result = _run(tmp_path, "a", "--workdir=w", "b", program=program)
    assert (result.returncode, result.stdout.strip()) == (0, "['a', 'b'] w")
    assert not (tmp_path / "w").exists()


def test_a_second_run_remembers_the_experiment_of_the_directory(tmp_path):
    _run(tmp_path, "--workdir=w", "--experiment=cifar10")
    assert _run(tmp_path, "--workdir=w").stdout.startswith("cifar10")


def test_the_default_directory_is_named_after_the_experiment(tmp_path):
    assert _run(tmp_path).stdout.strip().endswith("runs/digits")


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["--raise=user"], 2, "Error: Unknown colour 'rad'; expected one of red, blue."),
        (["--raise=disk"], 1, "Error: No space left on the disk"),
        (["--raise=defect"], 1, "Error: Unexpected ZeroDivisionError: division by zero."),
        (["--raise=interrupt"], 130, "Interrupted. Finished stages are kept"),
        (["leftover"], 2, "Error: Unexpected argument 'leftover'"),
        (
            ["--sed=4"],
            2,
            "Error: Unknown flag --sed; expected one of --debug, --experiment, --force",
        ),
        (["--experiment=mnist"], 2, "value should be one of"),
    ],
)
def test_every_error_is_one_line(tmp_path, arguments, status, line):
    result = _run(tmp_path, *arguments)
    assert result.returncode == status
    assert line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_debug_adds_the_traceback(tmp_path):
    result = _run(tmp_path, "--raise=defect", "--debug")
    assert "Traceback" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("Error: Unexpected ZeroDivisionError")


def test_help_lists_the_flags_under_their_modules(tmp_path):
    result = _run(tmp_path, "--help")
    assert result.returncode == 0
    assert "Does what the test asks." in result.stdout
    own, shared = result.stdout.split("pipelines (all stages):")
    assert "tests.stage:" in own
    assert "--raise" in own
    assert "--workdir" in shared


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SfmError("a\nb"), "a b"),
        (OSError(errno.EACCES, "Permission denied", "x"), "Permission denied: 'x'; finished"),
        (RuntimeError("x.tfrecord; No space left on device"), "No space left on the disk"),
    ],
)
def test_describes_errors_in_one_line(error, line):
    assert line in command_line.describe(error)
