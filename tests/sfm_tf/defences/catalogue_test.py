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
from sfm_tf.defences.settings import ComparedConfig


def test_all_stands_for_every_defence_once():
    assert expand(["jpeg", "all"]) == ("jpeg", *(name for name in DEFENCES if name != "jpeg"))
    assert expand(["median_2", "tvm"]) == ("median_2", "tvm")


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
