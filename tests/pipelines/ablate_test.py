import json

import pytest

from pipelines.ablate import ablate
from pipelines.ingest import ingest
from pipelines.validate import validate
from sfm_tf.training.model_files import load_defended_model
from sfm_tf.tuning.ablations import AblationStudy
from tests import artifacts
from tests.pipelines.tiny_digits import digits
from tests.small_models import small_models


@pytest.fixture(scope="module", autouse=True)
def _small_models():
    with small_models():
        yield


def test_trains_without_something_and_beside_it_the_complete_defence(validated):
    records = validated.latest("ingest")
    models = artifacts.make_models(validated, records)
    settings = digits(ablations=("frozen_target",), pretraining_epochs=0, iterations=1)
    artifact = ablate(validated, settings, False)
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
    validated, monkeypatch, capsys
):
    studies = []

    def run(self, folder):
        studies.append(self)
        return [
            {"words": "frozen target", "collapse": "The mask collapsed to ones.", "failure": ""}
        ]

    monkeypatch.setattr(AblationStudy, "run", run)
    models = artifacts.make_models(validated, validated.latest("ingest"))
    artifact = ablate(validated, digits(), False)
    assert artifact.manifest.inputs["train"] == models.manifest.fingerprint
    assert studies[0].source.output_shape == (None, 10)
    assert "ablate: frozen target: The mask collapsed to ones." in capsys.readouterr().err
    # Other records: that training has seen images to be scored on.
    other = digits(validation_fraction=0.3)
    ingest(validated, other, False)
    validate(validated, other, False)
    assert set(ablate(validated, other, False).manifest.inputs) == {"ingest"}
    assert studies[1].source is None
