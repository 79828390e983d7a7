from pipelines.fit_defences import fit_all, fit_defences
from sfm_tf.defences.fitting import PATCHES_FILE, PIXEL_CNN_FILE
from tests.pipelines.tiny_digits import digits


def test_each_defence_that_learns_has_an_artifact_of_its_own(validated):
    quilting, pixel_defend = fit_all(validated, digits(), False)
    stages = quilting.manifest.stage, pixel_defend.manifest.stage
    assert stages == ("fit_quilting", "fit_pixel_defend")
    assert (quilting.folder / PATCHES_FILE).is_file()
    assert (pixel_defend.folder / PIXEL_CNN_FILE).is_file()


def test_only_what_the_named_defences_need_is_fitted(validated):
    assert fit_defences(validated, digits(), False) == ()
    (made,) = fit_defences(validated, digits(defences=("jpeg+quilting_2",)), False)
    assert made.manifest.stage == "fit_quilting"
    assert not validated.has_finished("fit_pixel_defend")


def test_a_fit_is_found_again_whatever_the_settings_of_the_others(validated):
    (made,) = fit_defences(validated, digits(defences=("quilting",)), False)
    settings = digits(defences=("quilting",), pixel_cnn_epochs=3, jpeg="jpeg_10")
    (found,) = fit_defences(validated, settings, False)
    assert found.folder == made.folder
    settings = digits(defences=("quilting",), quilting_patches=101)
    (other,) = fit_defences(validated, settings, False)
    assert other.folder != made.folder
