import keras
import numpy as np
import pytest

from sfm_tf.artifacts.fingerprints import code_files
from sfm_tf.attacks.adaptive import OBJECTIVES
from sfm_tf.attacks.apgd import AutoProjectedGradientDescent
from sfm_tf.attacks.attack import CompiledAttack
from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.fab import FastAdaptiveBoundary
from sfm_tf.attacks.fgsm import FastGradientMethod
from sfm_tf.attacks.mim import MomentumIterativeMethod
from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.attacks.square import SquareAttack
from sfm_tf.attacks.uniform_noise import UniformNoise
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.attack_building import build_attack
from sfm_tf.evaluation.attack_catalogue import ATTACKS, CONFIGURABLE_ATTACKS
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.art_classifier import wrap_classifier
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor

SHAPE = (4, 4, 1)


def _classifier():
    keras.utils.set_random_seed(0)
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
        ("fab_t", FastAdaptiveBoundary),
    ],
)
@pytest.mark.parametrize("norm", ["inf", "2"])
def test_a_name_stands_for_its_attack(name, kind, norm):
    config = EvaluationConfig(attack_batch_size=5, norm=norm)
    attack = build_attack(name, _classifier(), 8 / 255, config, 3)
    assert type(attack) is kind
    assert (attack.norm, attack.batch_size, attack.seed) == (float(norm), 5, 3)
    if ATTACKS[name].is_bounded:
        assert attack.epsilon == 8 / 255


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Steps are configured in eight-bit levels.
        ("pgd", {"iterations": 7, "step_size": pytest.approx(2 / 255)}),
        ("apgd_ce", {"iterations": 9, "loss": "cross_entropy"}),
        ("apgd_dlr", {"iterations": 9, "loss": "dlr"}),
        ("apgd_t", {"iterations": 9, "loss": "targeted_dlr"}),
    ],
)
def test_each_attack_has_its_own_settings(name, expected):
    config = EvaluationConfig(step_size=2.0, iterations=7, apgd_iterations=9)
    attack = build_attack(name, _classifier(), 8 / 255, config, 0)
    assert {option: getattr(attack, option) for option in expected} == expected


@pytest.mark.parametrize("name", [*CONFIGURABLE_ATTACKS, "hop_skip_jump"])
def test_every_attack_that_can_be_configured_runs(name):
    config = EvaluationConfig(
        iterations=2,
        apgd_iterations=5,
        square_queries=20,
        cw_searches=1,
        cw_iterations=3,
        cw_learning_rate=0.1,
    )
    classifier = _classifier()
    attack = build_attack(name, classifier, 8 / 255, config, 0)
    assert isinstance(attack, CompiledAttack)
    images = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    # An image that is misclassified to begin with may come back as it is.
    moved = attack.generate(images, classifier.predict(images).argmax(axis=1))
    assert np.abs(moved - images).max() > 0
    if ATTACKS[name].is_bounded:
        assert np.abs(moved - images).max() <= 8 / 255 + 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_adaptive_objective_is_an_attack(objective):
    masker = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(1, 1, activation="sigmoid")])
    defended = DefendedModel(_classifier().model, masker, parse_preprocessor("bit_depth_4"))
    config = EvaluationConfig(iterations=2)
    classifier = wrap_classifier(defended, 5, SHAPE, 8)
    attack = build_attack(f"adaptive_{objective}", classifier, 8 / 255, config, 0)
    images = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    moved = attack.generate(images, np.array([0, 1, 2]))
    assert 0 < np.abs(moved - images).max() <= 8 / 255 + 1e-6


def test_an_evaluation_depends_on_the_code_of_every_attack_and_settings_on_none():
    def covered(module):
        return {path.stem for path in code_files(module) if path.parent.name == "attacks"}

    modules = {kind.class_path.split(".")[0] for kind in ATTACKS.values()}
    assert modules <= covered("sfm_tf.evaluation.runner")
    assert covered("sfm_tf.evaluation.settings") == set()


def test_an_unknown_attack_lists_the_known_ones():
    with pytest.raises(SfmError, match="Unknown attack 'pdg'; expected one of noise, fgsm, pgd"):
        build_attack("pdg", _classifier(), 8 / 255, EvaluationConfig(), 0)
