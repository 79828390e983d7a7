import dataclasses

import pytest

from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class _Config:
    epochs: int = 1


def _execution(**changes):
    values = {
        "stage": "train",
        "modules": ["sfm_tf.errors"],
        "configs": {"training": _Config()},
        "seed": 0,
        "inputs": {},
    }
    return Execution(**{**values, **changes})


def _write(text):
    def produce(folder):
        (folder / "weights").write_text(text)

    return produce


def _fail(folder):
    (folder / "checkpoint").write_text("epoch 1")
    raise KeyboardInterrupt


def test_runs_once_for_the_same_inputs_unless_forced(tmp_path):
    run_directory = RunDirectory(tmp_path)
    for text, force, found in (("a", False, "a"), ("b", False, "a"), ("c", True, "c")):
        outcome = execute(_execution(), run_directory, _write(text), force=force)
        assert outcome.reused == (text != found)
        assert (outcome.artifact.folder / "weights").read_text() == found


def _other_input(run_directory):
    return execute(
        _execution(stage="ingest", configs={"data": _Config(7)}), run_directory, _write("records")
    ).artifact


@pytest.mark.parametrize("change", ["config", "seed", "inputs", "modules", "source"])
def test_every_dependency_changes_the_fingerprint(tmp_path, change):
    run_directory = RunDirectory(tmp_path)
    changes = {
        "config": {"configs": {"training": _Config(epochs=2)}},
        "seed": {"seed": 1},
        "inputs": {"inputs": {"ingest": _other_input(run_directory)}},
        "modules": {"modules": ["sfm_tf.errors", "sfm_tf.settings"]},
        "source": {"source": "13 files"},
    }[change]
    before = execute(_execution(), run_directory, _write("a")).artifact
    after = execute(_execution(**changes), run_directory, _write("b")).artifact
    assert after.manifest.fingerprint != before.manifest.fingerprint
    assert (before.folder / "weights").read_text() == "a"
    assert run_directory.latest("train") == after


@dataclasses.dataclass(frozen=True)
class _Reading(Settings):
    source: str = setting("", "Where the images are.", is_place=True)


@pytest.mark.parametrize(
    ("place", "source", "reused"),
    [("/mnt/photos", "13 files", True), ("photos", "14 files", False), ("", "13 files", False)],
    ids=["elsewhere", "other files", "no place"],
)
def test_what_is_in_a_place_counts_and_not_where_it_is(tmp_path, place, source, reused):
    run_directory = RunDirectory(tmp_path)
    first = _execution(configs={"data": _Reading(source="photos")}, source="13 files")
    assert execute(first, run_directory, _write("a")).artifact.manifest.config == {
        "data": {"source": "photos"}
    }
    second = _execution(configs={"data": _Reading(source=place)}, source=source)
    assert execute(second, run_directory, _write("b")).reused == reused


def test_forced_work_with_other_contents_is_read_anew_downstream(tmp_path):
    run_directory = RunDirectory(tmp_path)

    def train_on(records, force):
        ingest = _execution(stage="ingest", configs={"data": _Config(7)})
        artifact = execute(ingest, run_directory, _write(records), force=force).artifact
        return execute(_execution(inputs={"ingest": artifact}), run_directory, _write("weights"))

    train_on("old records", False)
    assert not train_on("new records", True).reused
    assert train_on("unread", False).reused


def test_going_back_to_earlier_settings_makes_them_the_latest_again(tmp_path):
    run_directory = RunDirectory(tmp_path)
    first = execute(_execution(), run_directory, _write("a")).artifact
    execute(_execution(seed=1), run_directory, _write("b"))
    execute(_execution(), run_directory, _write("c"))
    assert run_directory.latest("train") == first


@pytest.mark.parametrize(("resumable", "left"), [(True, ["checkpoint"]), (False, [])])
def test_an_interrupted_stage_leaves_no_artifact(tmp_path, resumable, left):
    run_directory = RunDirectory(tmp_path)
    execution = _execution(resumable=resumable)
    with pytest.raises(KeyboardInterrupt):
        execute(execution, run_directory, _fail)
    found = []

    def produce(folder):
        found.extend(path.name for path in folder.iterdir())

    outcome = execute(execution, run_directory, produce)
    assert found == left
    assert not outcome.reused


def _refuse(folder):
    (folder / "logs").mkdir()
    raise SfmError("No source model.")


@pytest.mark.parametrize(
    ("resumable", "work", "kept"),
    [
        (True, _refuse, False),
        (True, _fail, True),
        (False, _refuse, False),
        (False, _fail, False),
    ],
    ids=["resumable refused", "resumable interrupted", "refused", "interrupted"],
)
def test_only_work_to_continue_from_is_kept(tmp_path, resumable, work, kept):
    run_directory = RunDirectory(tmp_path)
    with pytest.raises((SfmError, KeyboardInterrupt)):
        execute(_execution(resumable=resumable), run_directory, work)
    assert bool(list((tmp_path / "train").glob("*.partial"))) is kept
    assert not run_directory.has_finished("train")


@pytest.mark.parametrize(
    ("resumable", "left"), [(True, ["work.partial"]), (False, [])], ids=["resumable", "not"]
)
def test_what_killed_processes_left_is_cleared_away(tmp_path, resumable, left):
    for name in ("empty.partial/logs", "work.partial/checkpoints"):
        (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "train" / "work.partial" / "checkpoints" / "epoch 1").write_text("weights")
    execute(_execution(resumable=resumable), RunDirectory(tmp_path), _write("a"))
    assert [path.name for path in (tmp_path / "train").glob("*.partial")] == left


def test_a_misspelt_module_is_refused_before_any_work(tmp_path):
    with pytest.raises(SfmError, match=r"Unknown module 'sfm_tf\.erors'"):
        execute(_execution(modules=["sfm_tf.erors"]), RunDirectory(tmp_path), _fail)
    assert not list(tmp_path.iterdir())


def test_manifest_records_the_inputs(tmp_path):
    run_directory = RunDirectory(tmp_path)
    records = _other_input(run_directory)
    trained = execute(_execution(inputs={"ingest": records}), run_directory, _write("a")).artifact
    assert trained.manifest.inputs == {"ingest": records.manifest.fingerprint}
    assert trained.manifest.config == {"training": {"epochs": 1}}
    assert trained.manifest.wall_seconds >= 0.0
