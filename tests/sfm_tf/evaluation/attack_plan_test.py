import keras

from sfm_tf.evaluation.attack_plan import plan_attacks
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor

SHAPE = (4, 4, 1)


def _model(seed, *layers):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input(SHAPE), *layers])


def _classifier(seed=0):
    return _model(seed, keras.layers.Flatten(), keras.layers.Dense(3))


CLASSIFIER = _classifier()
DEFENDED = DefendedModel(
    CLASSIFIER,
    _model(1, keras.layers.Conv2D(1, 1, activation="sigmoid")),
    parse_preprocessor("bit_depth_3"),
)
MODELS = {"undefended": DefendedModel(CLASSIFIER), "sfm": DEFENDED}
SOURCE = _classifier(2)
ALL_BUT_ADAPTIVE = (
    "black_box",
    "gray_box",
    "white_box",
    "undefended",
    "score_based",
    "decision_based",
)


def _plan(**settings):
    plan = plan_attacks(MODELS, SOURCE, EvaluationConfig(**settings))
    return {(a.attack_name, tuple(map(str, a.scenarios))): a for a in plan}


def test_each_attack_on_each_model_is_planned_once():
    plan = _plan(attacks=("pgd",), threat_models=("black_box", "gray_box", "white_box"))
    assert list(plan) == [
        ("pgd", ("undefended black_box", "sfm black_box")),
        ("pgd", ("undefended gray_box", "undefended white_box")),
        ("pgd", ("sfm gray_box",)),
        ("pgd", ("sfm white_box",)),
        ("redraw", ("sfm white_box",)),
    ]
    source = next(iter(plan.values()))
    assert source.models == (SOURCE,)
    assert [attack.is_scored for attack in plan.values()] == [False, True, False, True, True]


def test_the_white_box_tries_each_surrogate_and_nobody_else_does():
    settings = {"attacks": ("noise", "pgd"), "threat_models": ALL_BUT_ADAPTIVE}
    tried = {
        (name, *scenarios): tuple(model.preprocessor.surrogate for model in attack.models)
        for (name, scenarios), attack in _plan(**settings).items()
        if attack.models[0] is not SOURCE
    }
    several = {key: surrogates for key, surrogates in tried.items() if len(surrogates) > 1}
    assert several == {("pgd", "sfm white_box"): ("identity", "smooth")}
    assert set(tried[("pgd", "sfm gray_box")]) == {"identity"}


def test_whatever_draws_or_rounds_meets_redraws_and_is_asked_anew_only_if_it_draws():
    chains = {
        "none": set(),
        "median_2": set(),
        "bit_depth_3": {"white_box"},
        "median_2+jpeg_75": {"white_box"},
        "total_variation_50_30": {"white_box", "score_based", "decision_based"},
    }
    models = {chain: DefendedModel(CLASSIFIER, None, parse_preprocessor(chain)) for chain in chains}
    config = EvaluationConfig(attacks=("fgsm",), threat_models=ALL_BUT_ADAPTIVE)
    plan = [a for a in plan_attacks(models, SOURCE, config) if a.attack_name == "redraw"]
    # What each attacker starts from differs, and so do the images.
    assert all(len(attack.scenarios) == 1 for attack in plan)
    found = {chain: set() for chain in chains}
    for attack in plan:
        found[attack.scenarios[0].defence].add(attack.scenarios[0].threat_model)
    assert found == chains
    few = {a.scenarios[0].threat_model: a.examples for a in plan}
    assert few == {"white_box": None, "score_based": None, "decision_based": 20}


def test_cheap_attacks_come_first():
    attacks = ("square", "apgd_ce", "cw", "pgd", "fgsm", "noise")
    plan = _plan(attacks=attacks, threat_models=("white_box",))
    names = list(dict.fromkeys(name for name, _ in plan))
    assert names == ["noise", "fgsm", "pgd", "cw", "apgd_ce", "square", "redraw"]


def test_an_attacker_unaware_of_the_defence_attacks_the_bare_classifier():
    plan = _plan(attacks=("pgd",), threat_models=("white_box", "undefended"))
    # The same model as the white box of the bare classifier, whose images serve both.
    assert list(plan) == [
        ("pgd", ("undefended white_box", "sfm undefended")),
        ("pgd", ("sfm white_box",)),
        ("redraw", ("sfm white_box",)),
    ]
    shared = next(iter(plan.values()))
    assert not shared.is_scored


def test_threat_models_with_attacks_of_their_own_run_those():
    plan = _plan(attacks=("fgsm",), threat_models=("score_based", "decision_based", "adaptive"))
    names = {name for name, _ in plan}
    assert {"square", "hop_skip_jump", "adaptive_mask_aware"} <= names
    assert "fgsm" not in names
    assert not any("undefended adaptive" in scenarios for _, scenarios in plan)


def test_a_decision_based_attacker_has_only_the_first_images():
    plan = _plan(threat_models=("decision_based", "white_box"), decision_examples=7)
    assert {a.examples for (name, _), a in plan.items() if name == "hop_skip_jump"} == {7}
    assert {a.examples for (name, _), a in plan.items() if name == "pgd"} == {None}


def test_square_of_the_white_box_serves_the_score_based_attacker_too():
    plan = _plan(attacks=("square",), threat_models=("white_box", "score_based"))
    assert ("square", ("sfm white_box", "sfm score_based")) in plan
