import contextlib
import io
import json

import pytest

from pipelines.ingest import ingest
from pipelines.train import train, train_adversarially
from pipelines.validate import validate
from sfm_tf import experiments
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.artifacts.stage_names import ADVERSARIAL_STAGE
from sfm_tf.errors import SfmError
from sfm_tf.training.loading import (
    load_adversarial_models,
    load_defended_model,
    load_source_model,
)

_TINY = {
    "max_train_examples": 150,
    "classifier_width": 4,
    "masker_width": 4,
    "masker_depth": 1,
    "pretraining_epochs": 1,
    "epochs": 1,
    "source_epochs": 1,
}
_ADVERSARIAL = {
    "adversarial_training": "trades",
    "adversarial_epochs": 1,
    "adversarial_epsilon": 16.0,
    "adversarial_iterations": 1,
}


def _digits(**changes):
    return experiments.override(experiments.preset("digits"), {**_TINY, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A working directory with records and ordinary training, and what that said."""
    run_directory = RunDirectory(tmp_path_factory.mktemp("run"))
    ingest(run_directory, _digits(), False)
    with pytest.raises(SfmError, match="Stage validate has not finished"):
        train(run_directory, _digits(), False)
    validate(run_directory, _digits(), False)
    with contextlib.redirect_stderr(io.StringIO()) as words:
        artifact = train(run_directory, _digits(), False)
    return run_directory, artifact, words.getvalue()


def test_trains_the_defended_and_the_source_model(trained):
    run_directory, artifact, words = trained
    assert load_defended_model(artifact.folder).masker.output_shape == (None, 8, 8, 1)
    assert load_source_model(artifact.folder).output_shape == (None, 10)
    history = json.loads((artifact.folder / "history.json").read_text())
    assert [epoch["stage"] for epoch in history["defence"]] == ["pretraining", "alternation"]
    assert list(artifact.folder.glob("logs/defence/events.*"))
    records = run_directory.latest("ingest")
    assert artifact.manifest.inputs == {"ingest": records.manifest.fingerprint}
    assert "train: alternation" in words
    assert not run_directory.has_finished(ADVERSARIAL_STAGE)


def test_adversarial_training_is_a_stage_of_its_own_and_leaves_the_ordinary_one_as_it_is(
    trained, capsys
):
    run_directory, ordinary, _ = trained
    again = train(run_directory, _digits(**_ADVERSARIAL), False)
    assert again.manifest == ordinary.manifest
    artifact = run_directory.latest(ADVERSARIAL_STAGE)
    assert artifact.manifest.inputs == ordinary.manifest.inputs
    assert artifact.manifest.config["training"]["adversarial_training"] == "trades"
    models = load_adversarial_models(artifact.folder)
    assert models["sfm_adversarial_training"].masker.output_shape == (None, 8, 8, 1)
    words = capsys.readouterr().err
    assert "train: found finished" in words
    assert "train_adversarially: adversarial_alternation" in words
    # More epochs of the ordinary training do not train it anew.
    other = _digits(**_ADVERSARIAL, source_epochs=3)
    assert train_adversarially(run_directory, other, False).manifest == artifact.manifest


def test_adversarial_training_needs_a_method(tmp_path):
    run_directory = RunDirectory(tmp_path)
    ingest(run_directory, _digits(), False)
    validate(run_directory, _digits(), False)
    with pytest.raises(SfmError, match="Unknown adversarial training 'none'"):
        train_adversarially(run_directory, _digits(), False)


def test_needs_the_records(tmp_path):
    with pytest.raises(SfmError, match="Stage ingest has not finished"):
        train(RunDirectory(tmp_path), _digits(), False)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
