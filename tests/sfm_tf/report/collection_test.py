import numpy as np
import pytest

from sfm_tf import testing
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.config import ReportConfig
from sfm_tf.errors import SfmError
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import read_schema
from sfm_tf.report.collection import collect_inputs


@pytest.fixture(name="artifacts", scope="module")
def _artifacts(tmp_path_factory):
    run_directory = RunDirectory(tmp_path_factory.mktemp("run"))
    evaluation = testing.make_evaluation(run_directory)
    models = run_directory.input_of(evaluation, "train")
    return run_directory.input_of(evaluation, "ingest"), models, evaluation


def _collect(artifacts):
    return collect_inputs("digits", *artifacts, ReportConfig(gallery_examples=3))


def test_counts_the_classes_of_the_evaluated_images(artifacts):
    records = artifacts[0].folder
    _, labels = load_split(records, "test", read_schema(records), 12)
    expected = {str(digit): int(np.sum(labels == digit)) for digit in range(10)}
    assert _collect(artifacts).class_counts == expected


def test_shows_the_first_test_images_behind_mask_and_preprocessing(artifacts):
    gallery = _collect(artifacts).gallery
    assert gallery.masks.shape == (3, 8, 8, 1)
    np.testing.assert_allclose(gallery.masked, gallery.masks * gallery.images, rtol=1e-6)
    expected = np.rint(gallery.masked * 15) / 15  # T is bit_depth_4.
    np.testing.assert_allclose(gallery.defended, expected, atol=1e-6)


def test_shows_each_threat_models_perturbation_of_those_images(artifacts):
    inputs = _collect(artifacts)
    assert [p.threat_model for p in inputs.perturbations] == ["black_box", "gray_box", "white_box"]
    for perturbation in inputs.perturbations:
        np.testing.assert_array_equal(perturbation.images, inputs.gallery.images)
        distance = np.abs(perturbation.adversarial_images - perturbation.images).max()
        assert 0.0 < distance <= 16 / 255 + 1e-6


def test_a_deleted_set_says_what_to_do(tmp_path):
    run_directory = RunDirectory(tmp_path)
    evaluation = testing.make_evaluation(run_directory)
    for path in (evaluation.folder / "adversarial").glob("*.tfrecord"):
        path.unlink()
    models = run_directory.input_of(evaluation, "train")
    records = run_directory.input_of(evaluation, "ingest")
    with pytest.raises(SfmError, match="is gone; run the evaluation with --force"):
        collect_inputs("digits", records, models, evaluation, ReportConfig())


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
