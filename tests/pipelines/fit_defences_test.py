import pytest

from pipelines.fit_defences import fit_all, fit_defences
from pipelines.ingest import ingest
from pipelines.validate import validate
from sfm_tf import experiments
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.defences.fitting import PATCHES_FILE, PIXEL_CNN_FILE

_TINY = {
    "max_train_examples": 100,
    "max_test_examples": 20,
    "allowed_anomalies": ("label_conflict", "empty_class"),
    "quilting_patches": 100,
    "pixel_cnn_width": 4,
    "pixel_cnn_depth": 1,
    "pixel_cnn_epochs": 1,
}


def _digits(**values):
    return experiments.override(experiments.preset("digits"), {**_TINY, **values})


@pytest.fixture(name="run_directory")
def _run_directory(tmp_path):
    run_directory = RunDirectory(tmp_path)
    ingest(run_directory, _digits(), False)
    validate(run_directory, _digits(), False)
    return run_directory


def test_each_defence_that_learns_has_an_artifact_of_its_own(run_directory):
    quilting, pixel_defend = fit_all(run_directory, _digits(), False)
    stages = quilting.manifest.stage, pixel_defend.manifest.stage
    assert stages == ("fit_quilting", "fit_pixel_defend")
    assert (quilting.folder / PATCHES_FILE).is_file()
    assert (pixel_defend.folder / PIXEL_CNN_FILE).is_file()


def test_only_what_the_named_defences_need_is_fitted(run_directory):
    assert fit_defences(run_directory, _digits(), False) == ()
    (made,) = fit_defences(run_directory, _digits(defences=("jpeg+quilting_2",)), False)
    assert made.manifest.stage == "fit_quilting"
    assert not run_directory.has_finished("fit_pixel_defend")


def test_a_fit_is_found_again_whatever_the_settings_of_the_others(run_directory):
    (made,) = fit_defences(run_directory, _digits(defences=("quilting",)), False)
    settings = _digits(defences=("quilting",), pixel_cnn_epochs=3, jpeg="jpeg_10")
    (found,) = fit_defences(run_directory, settings, False)
    assert found.folder == made.folder
    settings = _digits(defences=("quilting",), quilting_patches=101)
    (other,) = fit_defences(run_directory, settings, False)
    assert other.folder != made.folder
