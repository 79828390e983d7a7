import pathlib
import subprocess
import sys

import pytest

from pipelines import versions
from sfm_tf.errors import SfmError
from sfm_tf.serving.versions import ModelVersion, list_versions, publish

ROOT = pathlib.Path(versions.__file__).parents[1]


@pytest.fixture
def serving(tmp_path):
    """Three versions of one model."""
    staged = tmp_path / "staged"
    staged.mkdir()
    for number in (1, 2, 3):
        (staged / "saved_model.pb").write_bytes(b"model %d" % number)
        publish(staged, tmp_path / "serving" / "digits")
    return tmp_path / "serving"


def numbers(serving):
    return [version.number for version in list_versions(serving / "digits")]


def test_a_row_tells_what_is_known_of_a_version():
    text = versions.table(
        [
            ModelVersion(9, 1_250_000, True, "2026-11-23T21:40:33+00:00", None, True, True),
            ModelVersion(10, 0, False, None, None, False, False),
            ModelVersion(11, 40_000_000, True, "2026-11-24T01:02:03+00:00", 9, None, True),
        ]
    )
    assert text.splitlines() == [
        "version  size     pushed (UTC)      blessed  card",
        "9        1.2 MB   2026-11-23 21:40  yes      yes",
        "10       0.0 MB   unknown           NO       no    incomplete",
        "11       40.0 MB  2026-11-24 01:02  unknown  yes   what a server loads, copy of 9",
    ]


def test_rolls_back_before_it_deletes(serving):
    text = versions.manage(str(serving / "digits"), 2, 1)
    assert text.splitlines()[:3] == [
        "Rolled back to version 1; its copy is version 4.",
        "Deleted: 1, 2.",
        f"Versions in {serving / 'digits'}:",
    ]
    assert (serving / "digits" / "4" / "saved_model.pb").read_bytes() == b"model 1"
    assert numbers(serving) == [3, 4]
    assert versions.manage(str(serving / "digits"), 5, None).startswith("Deleted: nothing.")
    said = versions.manage(str(serving / "digits"), None, 4)
    assert said.startswith("Rolled back to version 4, the newest already.")


def test_the_only_model_needs_no_name(serving):
    assert versions.find_folder(None, str(serving), None) == str(serving / "digits")
    (serving / "notes").mkdir()
    assert versions.find_folder(None, str(serving), None) == str(serving / "digits")
    assert versions.find_folder(None, str(serving) + "/", "other") == str(serving / "other")
    (serving / "cifar10" / "1").mkdir(parents=True)
    with pytest.raises(SfmError, match="Give --model_name; the models in .* are: cifar10, digits"):
        versions.find_folder(None, str(serving), None)


@pytest.mark.parametrize(
    ("workdir", "serving_dir", "message"),
    [
        (None, None, "Give either --workdir or --serving_dir"),
        ("a", "b", "Give either --workdir or --serving_dir"),
        ("/absent", None, "Stage export has not finished in /absent"),
        (None, "/absent", "Give --model_name; the models in /absent are: none"),
    ],
)
def test_the_model_that_is_meant_must_be_clear(workdir, serving_dir, message):
    with pytest.raises(SfmError, match=message):
        versions.find_folder(workdir, serving_dir, None)


def test_the_program_does_as_its_flags_say(serving):
    program = [sys.executable, "-m", "pipelines.versions", f"--serving_dir={serving}"]
    arguments = ["--list", "--rollback_to=2", "--keep=1"]
    done = subprocess.run([*program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "Rolled back to version 2; its copy is version 4.\nDeleted: 1, 2, 3.\n"
    )
    assert numbers(serving) == [4]


@pytest.mark.parametrize(
    ("model", "keep", "rollback_to", "line"),
    [
        ("digits", None, 9, "No version 9 in"),
        ("digits", 0, None, "Cannot keep 0 versions; expected at least 1."),
        ("absent", None, None, "No model versions in .*; export a model or name another"),
    ],
)
def test_a_mistake_changes_nothing(serving, model, keep, rollback_to, line):
    with pytest.raises(SfmError, match=line):
        versions.manage(str(serving / model), keep, rollback_to)
    assert numbers(serving) == [1, 2, 3]
