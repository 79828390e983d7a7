import pytest

from pipelines.ingest import ingest
from pipelines.tune import tune
from pipelines.validate import validate
from sfm_tf import experiments
from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.tuning.search import Role
from sfm_tf.tuning.tuning import Tuning

CHIEF_AND_WORKERS = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": "8000"}


def _digits(**changes):
    values = {"max_train_examples": 150, "mixed_precision": "float32", **changes}
    return experiments.override(experiments.preset("digits"), values)


@pytest.fixture(name="run_directory")
def _run_directory(tmp_path):
    run_directory = RunDirectory(tmp_path)
    ingest(run_directory, _digits(), False)
    validate(run_directory, _digits(), False)
    return run_directory


@pytest.fixture(name="searches")
def _searches(monkeypatch):
    """The searches that were asked for; none trains anything."""
    asked = []

    def run(self, role):
        asked.append((role, self))
        self.store.mkdir(exist_ok=True)
        (self.store / f"trial{len(asked)}").touch()
        return [role]

    def write(self, assignments, folder):
        write_json(folder / "best.json", {"by": assignments[0].value})
        return {"collapse": "The mask collapsed to ones."}

    monkeypatch.setattr(Tuning, "run", run)
    monkeypatch.setattr(Tuning, "write", write)
    return asked


def test_leaves_an_artifact_and_does_no_finished_search_again(run_directory, searches, capsys):
    artifact = tune(run_directory, _digits(), False)
    assert (artifact.folder / "best.json").exists()
    records = run_directory.latest("ingest")
    assert artifact.manifest.inputs == {"ingest": records.manifest.fingerprint}
    assert artifact.manifest.config["scoring"]["epsilons"] == [16.0]
    assert "warning: the best trial, too: The mask collapsed to ones." in capsys.readouterr().err
    again = tune(run_directory, _digits(cw_searches=9, adversarial_epochs=3), False)
    assert again.manifest == artifact.manifest
    assert tune(run_directory, _digits(trial_epochs=3), False).manifest != artifact.manifest
    assert [role for role, _ in searches] == [Role.ALONE, Role.ALONE]
    assert searches[0][1].store == run_directory.root / "tune" / "trials"


def test_force_does_the_trials_again_too(run_directory, searches):
    tune(run_directory, _digits(), False)
    tune(run_directory, _digits(), True)
    assert len(searches) == 2
    assert [path.name for path in searches[0][1].store.iterdir()] == ["trial2"]


def test_a_worker_leaves_its_trials_to_the_chief(run_directory, searches, monkeypatch, capsys):
    for name, value in {**CHIEF_AND_WORKERS, "KERASTUNER_TUNER_ID": "worker0"}.items():
        monkeypatch.setenv(name, value)
    with run_directory.exclusive("tune"):  # As the chief holds it meanwhile.
        assert tune(run_directory, _digits(), False) is None
    assert not run_directory.has_finished("tune")
    assert "no trial is left for this worker" in capsys.readouterr().err
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    assert tune(run_directory, _digits(), False) == run_directory.latest("tune")
    (worker, its), (chief, others) = searches
    assert (worker, chief) == (Role.WORKER, Role.CHIEF)
    assert (its.store, its._shared) == (others.store, others._shared)


def test_needs_validated_records(tmp_path):
    run_directory = RunDirectory(tmp_path)
    with pytest.raises(SfmError, match="Stage ingest has not finished"):
        tune(run_directory, _digits(), False)
    ingest(run_directory, _digits(), False)
    with pytest.raises(SfmError, match="Stage validate has not finished"):
        tune(run_directory, _digits(), False)
