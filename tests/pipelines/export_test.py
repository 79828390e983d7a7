import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pipelines.export import export, pushed_folder
from sfm_tf import experiments, testing
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.training.loading import load_defended_model


def test_pushes_the_evaluated_model_once_and_again_where_a_server_would_not_find_it(tmp_path):
    run_directory = RunDirectory(tmp_path / "run")
    evaluation = testing.make_evaluation(run_directory)
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

    verification = json.loads((artifact.folder / "pushed.json").read_text())["verification"]
    assert (verification["examples"], verification["disagreeing_labels"]) == (12, 0)

    # Another model's version hides this one from a server, so it is pushed again.
    (tmp_path / "models" / "digits" / "2").mkdir()
    assert pushed_folder(export(run_directory, experiment, False)).name == "3"

    shutil.rmtree(tmp_path / "models")
    assert pushed_folder(export(run_directory, experiment, False)).is_dir()


def test_refuses_a_model_that_was_not_blessed(tmp_path):
    run_directory = RunDirectory(tmp_path)
    testing.make_evaluation(run_directory, min_accuracy=1.0)
    with pytest.raises(SfmError, match="NOT_BLESSED: Clean accuracy .* --allow_not_blessed"):
        export(run_directory, experiments.preset("digits"), False)
    assert not (tmp_path / "serving").exists()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
