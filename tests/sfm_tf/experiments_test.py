import collections
import dataclasses

import pytest

from sfm_tf import experiments
from sfm_tf.errors import SfmError


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_presets_are_named_after_themselves(name):
    assert experiments.preset(name).name == name


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(SfmError, match="Unknown experiment 'mnist'; expected one of digits, cifar"):
        experiments.preset("mnist")


def test_no_two_sections_share_a_field_so_that_each_has_its_flag():
    names = collections.Counter(
        field.name
        for section in experiments.SECTIONS.values()
        for field in dataclasses.fields(section)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_every_field_carries_its_help():
    for section in experiments.SECTIONS.values():
        for field in dataclasses.fields(section):
            assert field.metadata["help"].endswith("."), field.name


def test_override_reaches_every_section():
    changed = experiments.override(
        experiments.preset("digits"), {"shards": 2, "epochs": 3, "epsilons": (4.0,), "seed": 9}
    )
    assert changed.data.shards == 2
    assert changed.training.epochs == 3
    assert changed.evaluation.epsilons == (4.0,)
    assert changed.seed == 9
    assert changed.model == experiments.preset("digits").model


def test_override_refuses_an_unknown_field_and_lists_the_known():
    with pytest.raises(SfmError, match="Unknown setting 'epoch'; expected one of .*epochs"):
        experiments.override(experiments.preset("digits"), {"epoch": 3})


def test_override_checks_the_new_value():
    with pytest.raises(SfmError, match="Invalid epochs -1; expected at least 1"):
        experiments.override(experiments.preset("digits"), {"epochs": -1})


def test_house_numbers_are_not_mirrored():
    assert experiments.preset("svhn").training.augmentation == "crop"


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
