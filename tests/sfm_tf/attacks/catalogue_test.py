import keras
import numpy as np
import pytest

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.auto_projected_gradient import AutoProjectedGradientDescent
from sfm_tf.attacks.catalogue import build_attack
from sfm_tf.attacks.compiled_attack import CompiledAttack
from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.fast_gradient import FastGradientMethod
from sfm_tf.attacks.momentum_iterative import MomentumIterativeMethod
from sfm_tf.attacks.projected_gradient import ProjectedGradientDescent
from sfm_tf.attacks.square import SquareAttack
from sfm_tf.attacks.uniform_noise import UniformNoise
from sfm_tf.config import ATTACKS, EvaluationConfig
from sfm_tf.errors import SfmError

SHAPE = (4, 4, 1)


def _classifier():
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(5)]
    return wrap_classifier(keras.Sequential(layers), 5, SHAPE, 8)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fgsm", FastGradientMethod),
        ("pgd", ProjectedGradientDescent),
        ("mim", MomentumIterativeMethod),
        ("diverse", DiverseInputsMethod),
        ("noise", UniformNoise),
        ("apgd_ce", AutoProjectedGradientDescent),
        ("square", SquareAttack),
    ],
)
def test_a_name_stands_for_its_attack(name, kind):
    config = EvaluationConfig(attack_batch_size=5)
    attack = build_attack(name, _classifier(), 8 / 255, config, 3)
    assert type(attack) is kind
    assert (attack.epsilon, attack.batch_size, attack.seed) == (8 / 255, 5, 3)
    assert attack.norm == np.inf


def test_steps_are_configured_in_eight_bit_levels():
    config = EvaluationConfig(step_size=2.0, iterations=7)
    attack = build_attack("pgd", _classifier(), 8 / 255, config, 0)
    assert attack.step_size == pytest.approx(2 / 255)
    assert attack.iterations == 7


@pytest.mark.parametrize(
    ("name", "loss"),
    [("apgd_ce", "cross_entropy"), ("apgd_dlr", "dlr"), ("apgd_t", "targeted_dlr")],
)
def test_each_apgd_has_its_loss_and_its_iterations(name, loss):
    config = EvaluationConfig(apgd_iterations=9)
    attack = build_attack(name, _classifier(), 8 / 255, config, 0)
    assert (attack.loss, attack.iterations) == (loss, 9)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_that_can_be_configured_runs(name):
    config = EvaluationConfig(iterations=2, apgd_iterations=5, square_queries=20)
    attack = build_attack(name, _classifier(), 8 / 255, config, 0)
    assert isinstance(attack, CompiledAttack)
    images = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    moved = attack.generate(images, np.array([0, 1, 2]))
    assert 0 < np.abs(moved - images).max() <= 8 / 255 + 1e-6


def test_an_unknown_attack_lists_the_known_ones():
    with pytest.raises(SfmError, match="Unknown attack 'pdg'; expected one of fgsm, pgd."):
        build_attack("pdg", _classifier(), 8 / 255, EvaluationConfig(), 0)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
