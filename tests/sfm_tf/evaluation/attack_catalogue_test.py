import importlib
import inspect
import pkgutil

import pytest

import sfm_tf.attacks
from sfm_tf.attacks.adaptive import OBJECTIVES, AdaptiveGradientDescent
from sfm_tf.attacks.apgd import AutoProjectedGradientDescent
from sfm_tf.attacks.attack import CompiledAttack
from sfm_tf.attacks.autoattack import AutoAttack
from sfm_tf.attacks.pgd import GradientAttack
from sfm_tf.evaluation.attack_building import attack_class
from sfm_tf.evaluation.attack_catalogue import ATTACKS
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.threat_models import ThreatModel


def _attack_classes():
    """Every class of sfm_tf.attacks that is an attack of its own, not a step towards one."""
    found = set()
    for module in pkgutil.iter_modules(sfm_tf.attacks.__path__, "sfm_tf.attacks."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, CompiledAttack):
                found.add(value)
    return found - {CompiledAttack, GradientAttack}


def test_every_attack_has_its_row():
    classes = [attack_class(name) for name in ATTACKS]
    assert set(classes) == _attack_classes()
    # One class has several rows only where an option tells them apart.
    several = {kind for kind in classes if classes.count(kind) > 1}
    assert several == {AdaptiveGradientDescent, AutoProjectedGradientDescent, AutoAttack}
    adaptive = {name.removeprefix("adaptive_") for name in ATTACKS if name.startswith("adaptive_")}
    assert adaptive == set(OBJECTIVES)


def test_no_two_attacks_have_the_same_title():
    titles = [kind.title for kind in ATTACKS.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_row_says_what_its_class_is(name):
    kind = ATTACKS[name]
    if issubclass(attack_class(name), GradientAttack):
        assert kind.uses_gradient
        assert kind.is_iterated == (
            "iterations" in inspect.signature(attack_class(name)).parameters
        )
    assert set(kind.threat_models) <= {threat_model.value for threat_model in ThreatModel}
    options = set(inspect.signature(attack_class(name)).parameters)
    assert set(kind.options(EvaluationConfig())) <= options
    assert bool({"iterations", "queries"} & options) == kind.is_iterated


def test_attacks_that_take_no_gradient_or_a_single_step_are_these():
    assert [name for name, kind in ATTACKS.items() if not kind.uses_gradient] == [
        "noise",
        "square",
        "hop_skip_jump",
        "redraw",
    ]
    single = [name for name, kind in ATTACKS.items() if not kind.is_iterated]
    assert single == ["noise", "fgsm", "redraw"]
