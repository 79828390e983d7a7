import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pipelines.export import export, pushed_folder
from sfm_tf import experiments
from sfm_tf.errors import SfmError
from sfm_tf.serving import pushing, verification
from sfm_tf.training.model_files import load_defended_model


def test_pushes_the_evaluated_model_once_and_again_where_a_server_would_not_find_it(
    new_run, tmp_path, capsys, monkeypatch
):
    # Only the first push traces the model and starts a fresh process, which take their seconds.
    verify, write, found = pushing.verify_saved_model, pushing.export_saved_model, []

    def verify_once(*arguments, **options):
        if not found:
            found.append(verify(*arguments, **options))
        return found[0]

    def write_once(defended, class_names, folder, precision):
        if found:
            shutil.copytree(tmp_path / "models" / "digits" / "1", folder)
        else:
            write(defended, class_names, folder, precision)

    monkeypatch.setattr(verification, "SECONDS_PER_BATCH_SIZE", 0.1)
    monkeypatch.setattr(pushing, "verify_saved_model", verify_once)
    monkeypatch.setattr(pushing, "export_saved_model", write_once)
    run_directory = new_run("evaluate")
    evaluation = run_directory.latest("evaluate")
    experiment = experiments.override(
        experiments.preset("digits"),
        {"serving_dir": str(tmp_path / "models"), "model_name": "digits"},
    )
    artifact = export(run_directory, experiment, False)
    assert pushed_folder(artifact) == tmp_path / "models" / "digits" / "1"
    assert export(run_directory, experiment, False) == artifact

    images = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)
    served = tf.saved_model.load(str(pushed_folder(artifact))).signatures["serving_default"]
    models = run_directory.input_of(evaluation, "train")
    expected = load_defended_model(models.folder)(tf.constant(images))
    answers = served(images=tf.constant(images))
    np.testing.assert_allclose(answers["logits"], expected, atol=1e-5)

    verified = json.loads((artifact.folder / "pushed.json").read_text())["verification"]
    assert verified["examples"] == 12
    labels = {name: v["disagreeing_labels"] for name, v in verified["signatures"].items()}
    assert labels == {"serving_default": 0, "predict_bytes": 0, "explain": 0}
    batches = verified["performance"]["batches"]
    assert [batch["batch_size"] for batch in batches] == [1, 8, 64]
    lines = [line for line in capsys.readouterr().err.splitlines() if "peak memory" in line]
    assert len(lines) == 2  # Once measured, once found finished.
    for batch in batches:
        median = f"batch {batch['batch_size']}: median {1000 * batch['median_seconds']:,.1f} ms"
        assert all(median in line for line in lines)

    extra = pushed_folder(artifact) / "assets.extra"
    card = (extra / "MODEL_CARD.md").read_text()
    assert "--experiment=digits --seed=0" in card
    assert evaluation.manifest.fingerprint in card
    manifest = json.loads((extra / "manifest.json").read_text())
    assert manifest["artifact"]["fingerprint"] == evaluation.manifest.fingerprint
    assert manifest["blessed"] is True

    # Another model's version hides this one from a server, so it is pushed again.
    (tmp_path / "models" / "digits" / "2").mkdir()
    assert pushed_folder(export(run_directory, experiment, False)).name == "3"

    for version in (2, 3):
        shutil.rmtree(tmp_path / "models" / "digits" / str(version))
    assert pushed_folder(export(run_directory, experiment, False)).name == "4"


def test_refuses_a_model_that_was_not_blessed(new_run):
    run_directory = new_run("evaluate")
    folder = run_directory.latest("evaluate").folder
    (folder / "BLESSED").unlink()
    (folder / "NOT_BLESSED").write_text("Clean accuracy is too low.\n")
    with pytest.raises(SfmError, match="NOT_BLESSED: Clean accuracy .* --allow_not_blessed"):
        export(run_directory, experiments.preset("digits"), False)
    assert not (run_directory.root / "serving").exists()
