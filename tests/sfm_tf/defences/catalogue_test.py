import dataclasses

import pytest

from sfm_tf.defences.catalogue import (
    ADVERSARIALLY_TRAINED,
    DEFENCES,
    FITTED,
    TRAINED,
    broken_by,
    expand,
)
from sfm_tf.defences.chains import check_defences, defence_chain, fits_needed
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError

CONFIG = ComparedConfig(jpeg="jpeg_50", tvm="total_variation_40_20")


def test_all_stands_for_every_defence_once():
    assert expand(["jpeg", "all"]) == ("jpeg", *(name for name in DEFENCES if name != "jpeg"))
    assert expand(["median_2", "tvm"]) == ("median_2", "tvm")


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


@pytest.mark.parametrize(
    ("name", "publication"),
    [
        ("jpeg", "Athalye et al. 2018"),
        ("jpeg_75", "Athalye et al. 2018"),
        ("median_2+sensitivity_10", "He et al. 2017"),
        ("sensitivity", None),
        ("sfm", None),
        ("adversarial_training", None),
        ("undefended", None),
    ],
)
def test_who_broke_a_defence_is_known_by_its_parts(name, publication):
    assert broken_by(name) == publication


def test_each_defence_is_trained_or_a_chain():
    assert TRAINED == ("sfm", "adversarial_training", "sfm_adversarial_training")
    assert TRAINED[1:] == ADVERSARIALLY_TRAINED
    assert FITTED == ("quilting", "pixel_defend")
    settings = {field.name for field in dataclasses.fields(ComparedConfig)}
    assert set(DEFENCES) - set(TRAINED) - {"undefended"} <= settings
    assert len({defence.title for defence in DEFENCES.values()}) == len(DEFENCES)
