import contextlib
import io
import json

import pytest

from pipelines.ingest import ingest
from pipelines.train import train, train_adversarially
from pipelines.validate import validate
from sfm_tf.artifacts import atomic_files
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.run_directory import ADVERSARIAL_STAGE, RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.training.model_files import (
    load_adversarial_models,
    load_defended_model,
    load_source_model,
)
from tests.pipelines.tiny_digits import digits
from tests.small_models import small_models


@pytest.fixture(scope="module", autouse=True)
def _small_models():
    with small_models():
        yield


_ADVERSARIAL = {
    "adversarial_training": "trades",
    "adversarial_epochs": 1,
    "adversarial_epsilon": 16.0,
    "adversarial_iterations": 1,
}


@pytest.fixture(scope="module")
def trained(new_run):
    """A working directory with records and ordinary training, and what that said."""
    run_directory = new_run("ingest")
    validate(run_directory, digits(), False)
    with contextlib.redirect_stderr(io.StringIO()) as words:
        artifact = train(run_directory, digits(), False)
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
    again = train(run_directory, digits(**_ADVERSARIAL), False)
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
    other = digits(**_ADVERSARIAL, source_epochs=3)
    assert train_adversarially(run_directory, other, False).manifest == artifact.manifest


def test_adversarial_training_needs_a_method(validated):
    with pytest.raises(SfmError, match="Unknown adversarial training 'none'"):
        train_adversarially(validated, digits(), False)


def _leave_tuning(run_directory, records, **values):
    """Leaves what a tuning would, without its hours."""

    def produce(folder):
        atomic_files.write_json(folder / "best.json", {"values": values})

    execution = Execution(
        stage="tune", modules=["sfm_tf.errors"], configs={}, seed=0, inputs={"ingest": records}
    )
    return execute(execution, run_directory, produce).artifact


def test_weights_of_a_tuning_are_taken_and_it_is_an_input(trained):
    run_directory, untuned, _ = trained
    with pytest.raises(SfmError, match="Stage tune has not finished"):
        train(run_directory, digits(tuned=True), False)
    weights = {"sparsity_weight": 0.21, "semantic_weight": 7.0, "reconstruction_weight": 1.5}
    tuning = _leave_tuning(run_directory, run_directory.latest("ingest"), **weights)
    artifact = train(run_directory, digits(tuned=True), False)
    assert artifact.manifest.fingerprint != untuned.manifest.fingerprint
    assert artifact.manifest.inputs["tune"] == tuning.manifest.fingerprint
    used = artifact.manifest.config["training"]
    assert {name: used[name] for name in weights} == weights
    written = json.loads((artifact.folder / "loss_weights.json").read_text())
    assert written["sparsity_weight"] == 0.21


def test_tuning_on_other_images_is_refused(validated, tmp_path):
    others = ingest(RunDirectory(tmp_path), digits(), False)
    _leave_tuning(validated, others, sparsity_weight=0.1)
    with pytest.raises(SfmError, match="used other images than"):
        train(validated, digits(tuned=True), False)
