import json

import pytest

from pipelines.ablate import ablate
from pipelines.ingest import ingest
from pipelines.validate import validate
from sfm_tf import experiments
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.training.model_files import load_defended_model
from sfm_tf.tuning.ablations import AblationStudy
from tests import artifacts
from tests.small_models import small_models


@pytest.fixture(scope="module", autouse=True)
def _small_models():
    with small_models():
        yield


TINY = {
    "max_train_examples": 150,
    "classifier_width": 4,
    "masker_width": 4,
    "masker_depth": 1,
    "pretraining_epochs": 0,
    "ablation_epochs": 1,
    "iterations": 1,
    "mixed_precision": "float32",
}


def _digits(**changes):
    return experiments.override(experiments.preset("digits"), {**TINY, **changes})


@pytest.fixture(name="run_directory")
def _run_directory(tmp_path):
    run_directory = RunDirectory(tmp_path)
    ingest(run_directory, _digits(), False)
    validate(run_directory, _digits(), False)
    return run_directory


def test_trains_without_something_and_beside_it_the_complete_defence(run_directory):
    records = run_directory.latest("ingest")
    models = artifacts.make_models(run_directory, records)
    artifact = ablate(run_directory, _digits(ablations=("frozen_target",)), False)
    entries = json.loads((artifact.folder / "ablations.json").read_text())
    assert [entry["name"] for entry in entries] == ["complete", "frozen_target"]
    for entry in entries:
        assert load_defended_model(artifact.folder / entry["name"]).masker is not None
        assert 0.0 <= entry["gray_box"] <= 1.0
        assert entry["epsilon"] == 16.0
    inputs = {"ingest": records, "train": models}
    assert artifact.manifest.inputs == {
        stage: each.manifest.fingerprint for stage, each in inputs.items()
    }


def test_takes_the_source_model_of_the_latest_training_on_these_records(
    run_directory, monkeypatch, capsys
):
    studies = []

    def run(self, folder):
        studies.append(self)
        return [
            {"words": "frozen target", "collapse": "The mask collapsed to ones.", "failure": ""}
        ]

    monkeypatch.setattr(AblationStudy, "run", run)
    models = artifacts.make_models(run_directory, run_directory.latest("ingest"))
    artifact = ablate(run_directory, _digits(), False)
    assert artifact.manifest.inputs["train"] == models.manifest.fingerprint
    assert studies[0].source.output_shape == (None, 10)
    assert "ablate: frozen target: The mask collapsed to ones." in capsys.readouterr().err
    # Other records: that training has seen images to be scored on.
    other = _digits(validation_fraction=0.3)
    ingest(run_directory, other, False)
    validate(run_directory, other, False)
    assert set(ablate(run_directory, other, False).manifest.inputs) == {"ingest"}
    assert studies[1].source is None


def test_needs_validated_records(tmp_path):
    run_directory = RunDirectory(tmp_path)
    ingest(run_directory, _digits(), False)
    with pytest.raises(SfmError, match="Stage validate has not finished"):
        ablate(run_directory, _digits(), False)
