import os
import shlex
import shutil

import pytest

from sfm_tf.artifacts.manifest import Manifest, write_manifest
from sfm_tf.artifacts.run_directory import ADVERSARIAL_STAGE, RunDirectory, fit_stage
from sfm_tf.defences.catalogue import FITTED
from sfm_tf.errors import SfmError


def test_each_fit_and_each_training_has_a_folder_of_its_own():
    names = [ADVERSARIAL_STAGE, "train", *map(fit_stage, FITTED)]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def _finish(run_directory, stage, fingerprint, content, inputs=None):
    partial = run_directory.open_partial(stage, fingerprint, empty=True)
    (partial / "content.txt").write_text(content)
    manifest = Manifest(
        stage=stage,
        fingerprint=fingerprint,
        config={},
        seed=0,
        inputs=inputs or {},
        content="0a",
        code_version="",
        package_versions={},
        started="",
        wall_seconds=0.0,
    )
    write_manifest(partial, manifest)
    artifact = run_directory.finish(stage, fingerprint)
    run_directory.set_latest(artifact)
    return artifact


def test_claim_creates_and_then_recognises_the_experiment(tmp_path):
    run_directory = RunDirectory(tmp_path / "new" / "run")
    assert run_directory.experiment() is None
    run_directory.check_owner("digits")
    assert not (tmp_path / "new").exists()
    run_directory.claim("digits")
    run_directory.claim("digits")
    assert run_directory.experiment() == "digits"
    with pytest.raises(SfmError, match="belongs to experiment 'digits', not 'cifar10'"):
        RunDirectory(tmp_path / "new" / "run").claim("cifar10")


def _fail_in_claim(run_directory, work):
    with run_directory.claimed("digits"), run_directory.exclusive("ingest"):
        work()
        raise SfmError("refused")


@pytest.mark.parametrize("made", ["nothing", "claim", "artifact"])
def test_a_claim_is_taken_back_unless_anything_was_made(tmp_path, made):
    run_directory = RunDirectory(tmp_path / "run")
    if made == "claim":
        run_directory.claim("digits")

    def work():
        if made == "artifact":
            _finish(run_directory, "ingest", "a" * 64, "0")

    with pytest.raises(SfmError, match="refused"):
        _fail_in_claim(run_directory, work)
    assert run_directory.experiment() == (None if made == "nothing" else "digits")
    assert run_directory.root.exists() == (made != "nothing")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("thesis.tex", "neither empty nor a working directory"),
        ("experiment.json", r"Cannot read .*experiment\.json"),
    ],
)
def test_claim_refuses_a_folder_that_holds_something_else(tmp_path, name, message):
    (tmp_path / name).write_text("{")
    for ask in (RunDirectory(tmp_path).claim, RunDirectory(tmp_path).check_owner):
        with pytest.raises(SfmError, match=message):
            ask("digits")


def test_latest_is_the_last_finished(tmp_path):
    run_directory = RunDirectory(tmp_path)
    _finish(run_directory, "train", "a" * 64, "first")
    _finish(run_directory, "train", "b" * 64, "second")
    assert (run_directory.latest("train").folder / "content.txt").read_text() == "second"
    first = run_directory.find("train", "a" * 64)
    assert (first.folder / "content.txt").read_text() == "first"


def test_latest_says_which_stage_to_run(tmp_path):
    with pytest.raises(SfmError, match=r"Stage train has not finished.*python -m pipelines\.train"):
        RunDirectory(tmp_path).latest("train")


def test_a_directory_with_spaces_is_named_as_a_shell_takes_it(tmp_path):
    root = tmp_path / "ann's first run"
    with pytest.raises(SfmError) as caught:
        RunDirectory(root).latest("train")
    _, command, _ = str(caught.value).split("`")
    assert shlex.split(command) == ["python", "-m", "pipelines.train", f"--workdir={root}"]


def test_input_of_follows_the_lineage_not_the_latest(tmp_path):
    run_directory = RunDirectory(tmp_path)
    first = _finish(run_directory, "ingest", "a" * 64, "first")
    trained = _finish(run_directory, "train", "c" * 64, "model", {"ingest": "a" * 64})
    _finish(run_directory, "ingest", "b" * 64, "second")
    assert run_directory.input_of(trained, "ingest") == first
    assert run_directory.inputs_of(trained) == {"ingest": first}
    shutil.rmtree(first.folder)
    with pytest.raises(SfmError, match="The ingest artifact .* is gone; run stage ingest and then"):
        run_directory.input_of(trained, "ingest")


def test_partial_work_is_no_artifact_and_kept_unless_emptied(tmp_path):
    run_directory = RunDirectory(tmp_path)
    partial = run_directory.open_partial("train", "a" * 64, empty=False)
    (partial / "checkpoint").write_text("epoch 1")
    assert run_directory.find("train", "a" * 64) is None
    kept = run_directory.open_partial("train", "a" * 64, empty=False)
    assert (kept / "checkpoint").read_text() == "epoch 1"
    emptied = run_directory.open_partial("train", "a" * 64, empty=True)
    assert list(emptied.iterdir()) == []


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path):
    run_directory = RunDirectory(tmp_path)
    partial = run_directory.open_partial("train", "a" * 64, empty=False)
    (partial / "checkpoint").mkdir()
    (partial / "checkpoint" / ".epoch_00001.npz.17.tmp").write_text("half")
    run_directory.open_partial("train", "a" * 64, empty=False)
    assert list((partial / "checkpoint").iterdir()) == []


def test_finish_replaces_a_forced_artifact_whole(tmp_path):
    run_directory = RunDirectory(tmp_path)
    _finish(run_directory, "train", "a" * 64, "old")
    artifact = _finish(run_directory, "train", "a" * 64, "new")
    assert (artifact.folder / "content.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "train").iterdir() if path.is_dir()] == ["a" * 16]


def test_a_stage_runs_once_at_a_time(tmp_path):
    run_directory = RunDirectory(tmp_path)
    with (
        run_directory.exclusive("train"),
        pytest.raises(SfmError, match="Stage train is already running"),
        run_directory.exclusive("train"),
    ):
        pass
    with run_directory.exclusive("train"):
        pass


def test_name_that_is_not_utf8_is_refused(tmp_path):
    run_directory = RunDirectory(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(SfmError, match=r"Invalid --workdir .*/caf\\xe9; expected a path in UTF-8"):
        run_directory.claim("digits")
    assert list(tmp_path.iterdir()) == []
