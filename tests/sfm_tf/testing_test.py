import pytest

from sfm_tf import testing
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.training.loading import load_defended_model, load_source_model


def test_leaves_what_the_first_stages_would(tmp_path):
    run_directory = RunDirectory(tmp_path)
    evaluation = testing.make_evaluation(run_directory)
    assert evaluation == run_directory.latest("evaluate")
    models = run_directory.input_of(evaluation, "train")
    assert run_directory.input_of(models, "ingest") == run_directory.latest("ingest")
    assert load_defended_model(models.folder).masker.output_shape == (None, 8, 8, 1)
    assert load_source_model(models.folder).output_shape == (None, 10)
    assert (evaluation.folder / "BLESSED").is_file()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
