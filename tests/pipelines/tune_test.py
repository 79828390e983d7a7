import pytest

from pipelines.tune import tune
from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.tuning.search import Role
from sfm_tf.tuning.tuning import Tuning
from tests.pipelines.tiny_digits import digits

CHIEF_AND_WORKERS = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": "8000"}


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


def test_leaves_an_artifact_and_does_no_finished_search_again(validated, searches, capsys):
    artifact = tune(validated, digits(), False)
    assert (artifact.folder / "best.json").exists()
    records = validated.latest("ingest")
    assert artifact.manifest.inputs == {"ingest": records.manifest.fingerprint}
    assert artifact.manifest.config["scoring"]["epsilons"] == [16.0]
    assert "warning: the best trial, too: The mask collapsed to ones." in capsys.readouterr().err
    again = tune(validated, digits(cw_searches=9, adversarial_epochs=3), False)
    assert again.manifest == artifact.manifest
    assert tune(validated, digits(trial_epochs=3), False).manifest != artifact.manifest
    assert [role for role, _ in searches] == [Role.ALONE, Role.ALONE]
    assert searches[0][1].store == validated.root / "tune" / "trials"


def test_force_does_the_trials_again_too(validated, searches):
    tune(validated, digits(), False)
    tune(validated, digits(), True)
    assert len(searches) == 2
    assert [path.name for path in searches[0][1].store.iterdir()] == ["trial2"]


def test_a_worker_leaves_its_trials_to_the_chief(validated, searches, monkeypatch, capsys):
    for name, value in {**CHIEF_AND_WORKERS, "KERASTUNER_TUNER_ID": "worker0"}.items():
        monkeypatch.setenv(name, value)
    with validated.exclusive("tune"):  # As the chief holds it meanwhile.
        assert tune(validated, digits(), False) is None
    assert not validated.has_finished("tune")
    assert "no trial is left for this worker" in capsys.readouterr().err
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    assert tune(validated, digits(), False) == validated.latest("tune")
    (worker, its), (chief, others) = searches
    assert (worker, chief) == (Role.WORKER, Role.CHIEF)
    assert (its.store, its._shared) == (others.store, others._shared)
