import keras
import numpy as np
import pytest

from sfm_tf.attacks.adaptive import OBJECTIVES
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.threat_models import ThreatModel, applies_to, attacked_model, default_attacks
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.preprocessors.draws import KeyedDraws, RepeatableFreshDraws

SHAPE = (2, 2, 1)
IMAGES = np.random.default_rng(0).random((3, *SHAPE)).astype(np.float32)


def _linear(kernel):
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3, use_bias=False)]
    model = keras.Sequential(layers)
    model.set_weights([kernel])
    return model


def _masker():
    layers = [keras.Input(SHAPE), keras.layers.Conv2D(1, 1, activation="sigmoid")]
    model = keras.Sequential(layers)
    model.set_weights([np.full((1, 1, 1, 1), 2.0), np.array([-1.0])])
    return model


KERNEL = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
SOURCE_KERNEL = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
MASKED = IMAGES / (1 + np.exp(1 - 2 * IMAGES))
KNOWING_OR_ASKING = [
    threat_model
    for threat_model in ThreatModel
    if threat_model.value in ("white_box", "adaptive", "score_based", "decision_based")
]
WHOLE = np.rint(MASKED.reshape(3, 4) * 3) / 3 @ KERNEL


@pytest.mark.parametrize(
    ("threat_model", "expected"),
    [
        (ThreatModel.BLACK_BOX, IMAGES.reshape(3, 4) @ SOURCE_KERNEL),
        (ThreatModel.GRAY_BOX, MASKED.reshape(3, 4) @ KERNEL),
        (ThreatModel.WHITE_BOX, WHOLE),
        (ThreatModel.ADAPTIVE, WHOLE),
        (ThreatModel.UNDEFENDED, IMAGES.reshape(3, 4) @ KERNEL),
        (ThreatModel.SCORE_BASED, WHOLE),
        (ThreatModel.DECISION_BASED, WHOLE),
    ],
)
def test_each_attacker_attacks_the_model_it_knows(threat_model, expected):
    defended = DefendedModel(_linear(KERNEL), _masker(), parse_preprocessor("bit_depth_2"))
    attacked = attacked_model(threat_model, defended, _linear(SOURCE_KERNEL))
    np.testing.assert_allclose(attacked(IMAGES), expected, atol=1e-6)


@pytest.mark.parametrize(
    "threat_model", [ThreatModel.GRAY_BOX, ThreatModel.WHITE_BOX, ThreatModel.UNDEFENDED]
)
def test_without_a_defence_the_classifier_is_attacked(threat_model):
    attacked = attacked_model(threat_model, DefendedModel(_linear(KERNEL)), None)
    np.testing.assert_allclose(attacked(IMAGES), IMAGES.reshape(3, 4) @ KERNEL, atol=1e-6)


@pytest.mark.parametrize(
    ("draws", "is_same"), [(KeyedDraws(bytes(range(16))), True), (RepeatableFreshDraws(), False)]
)
@pytest.mark.parametrize("threat_model", KNOWING_OR_ASKING)
def test_who_knows_or_asks_the_model_faces_the_function_that_is_scored(
    threat_model, draws, is_same
):
    random = parse_preprocessor("total_variation_50_30").with_draws(draws)
    defended = DefendedModel(_linear(KERNEL), _masker(), random)
    attacked = attacked_model(threat_model, defended, None)
    again = attacked_model(threat_model, defended, None)
    np.testing.assert_array_equal(attacked(IMAGES), again(IMAGES))
    found = np.array_equal(attacked(IMAGES), defended(IMAGES))
    assert found == is_same


def test_black_box_needs_a_source():
    with pytest.raises(SfmError, match="black-box threat model needs a source model"):
        attacked_model(ThreatModel.BLACK_BOX, DefendedModel(_linear(KERNEL)), None)


def test_adaptive_needs_a_masker():
    defended = DefendedModel(_linear(KERNEL), None, parse_preprocessor("bit_depth_2"))
    with pytest.raises(SfmError, match="needs a model with a masker; found one without. Attack it"):
        attacked_model(ThreatModel.ADAPTIVE, defended, None)


@pytest.mark.parametrize(
    ("has_masker", "spec", "left_out"),
    [
        (True, "bit_depth_2", set()),
        (True, "none", set()),
        (False, "bit_depth_2", {"adaptive"}),
        (False, "none", {"adaptive", "undefended"}),
    ],
)
def test_what_has_nothing_to_aim_at_is_left_out(has_masker, spec, left_out):
    masker = _masker() if has_masker else None
    defended = DefendedModel(_linear(KERNEL), masker, parse_preprocessor(spec))
    found = {model.value for model in ThreatModel if not applies_to(model, defended)}
    assert found == left_out


@pytest.mark.parametrize(
    ("name", "further"),
    [("black_box", ()), ("gray_box", ()), ("white_box", ("redraw",)), ("undefended", ())],
)
def test_gradient_attackers_run_the_configured_attacks(name, further):
    assert default_attacks(ThreatModel(name), ("mim", "pgd")) == ("mim", "pgd", *further)
    assert ThreatModel(name).access == "gradient"


@pytest.mark.parametrize(
    ("name", "access", "attacks"),
    [
        ("score_based", "scores", ("square", "redraw")),
        ("decision_based", "decisions", ("hop_skip_jump", "redraw")),
        ("adaptive", "adaptive", tuple(f"adaptive_{objective}" for objective in OBJECTIVES)),
    ],
)
def test_the_other_attackers_have_attacks_of_their_own(name, access, attacks):
    assert default_attacks(ThreatModel(name), ("pgd",)) == attacks
    assert ThreatModel(name).access == access


def test_each_attacker_is_told_in_a_sentence_of_its_own():
    sentences = {threat_model.attacker_knows for threat_model in ThreatModel}
    assert len(sentences) == len(ThreatModel)
    for sentence in sentences:
        assert sentence.startswith("The attacker knows ")
        assert sentence.index(".") == len(sentence) - 1
