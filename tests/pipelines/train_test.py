import json

import pytest

from pipelines.ingest import ingest
from pipelines.train import train
from pipelines.validate import validate
from sfm_tf import experiments
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.training.loading import load_defended_model, load_source_model

_TINY = {
    "max_train_examples": 150,
    "classifier_width": 4,
    "masker_width": 4,
    "masker_depth": 1,
    "pretraining_epochs": 1,
    "epochs": 1,
    "source_epochs": 1,
}


def _digits():
    return experiments.override(experiments.preset("digits"), _TINY)


def test_trains_the_defended_and_the_source_model(tmp_path, capsys):
    run_directory = RunDirectory(tmp_path)
    records = ingest(run_directory, _digits(), False)
    with pytest.raises(SfmError, match="Stage validate has not finished"):
        train(run_directory, _digits(), False)
    validate(run_directory, _digits(), False)
    artifact = train(run_directory, _digits(), False)
    assert load_defended_model(artifact.folder).masker.output_shape == (None, 8, 8, 1)
    assert load_source_model(artifact.folder).output_shape == (None, 10)
    history = json.loads((artifact.folder / "history.json").read_text())
    assert [epoch["stage"] for epoch in history["defence"]] == ["pretraining", "alternation"]
    assert list(artifact.folder.glob("logs/defence/events.*"))
    assert artifact.manifest.inputs == {"ingest": records.manifest.fingerprint}
    assert "train: alternation" in capsys.readouterr().err


def test_needs_the_records(tmp_path):
    with pytest.raises(SfmError, match="Stage ingest has not finished"):
        train(RunDirectory(tmp_path), _digits(), False)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
