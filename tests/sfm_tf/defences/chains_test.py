import pytest

from sfm_tf.defences.chains import check_defences, defence_chain, fits_needed
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError

CONFIG = ComparedConfig(jpeg="jpeg_50", tvm="total_variation_40_20")


@pytest.mark.parametrize(
    ("name", "chain"),
    [
        ("undefended", "none"),
        ("jpeg", "jpeg_50"),
        ("tvm+bit_depth_4", "total_variation_40_20+bit_depth_4"),
        ("undefended+median_2", "median_2"),
        ("feature_squeezing+jpeg", f"{ComparedConfig().feature_squeezing}+jpeg_50"),
    ],
)
def test_a_defence_is_the_chain_of_its_parts(name, chain):
    assert defence_chain(name, CONFIG) == chain


@pytest.mark.parametrize("name", ["sfm", "jpeg+sfm", "adversarial_training+median_2"])
def test_a_trained_defence_goes_into_no_chain(name):
    with pytest.raises(SfmError, match="cannot be part of a chain"):
        defence_chain(name, CONFIG)


def test_only_what_learns_from_images_is_fitted():
    assert fits_needed(["undefended", "sfm", "jpeg"], CONFIG) == ()
    assert fits_needed(["jpeg+quilting_5"], CONFIG) == ("quilting",)
    assert fits_needed(["all"], CONFIG) == ("quilting", "pixel_defend")


def test_an_unknown_defence_is_refused_with_those_there_are():
    check_defences(["all", "jpeg+median_3", "sensitivity_20"], CONFIG)
    with pytest.raises(SfmError, match="Unknown defence 'tmv'; expected all, one of undefended"):
        check_defences(["tmv"], CONFIG)
    with pytest.raises(SfmError, match="Unknown defence 'blur_2'"):
        check_defences(["jpeg+blur_2"], CONFIG)
