import dataclasses

import pytest

from sfm_tf.evaluation.metrics import VanishedGradients
from sfm_tf.evaluation.paired_answers import Condition
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.report import statements
from tests import made_up

CONFIG = EvaluationConfig(epsilons=(4.0, 8.0), iterations=7, step_size=2.0)


@pytest.mark.parametrize(
    ("available", "share"), [(9827, "the first 10 of 9,827"), (10, "all 10 of 10")]
)
def test_the_images_are_counted(available, share):
    inputs = dataclasses.replace(
        made_up.inputs(),
        statistics={"test": {"count": available}},
        class_counts={"cat": 4, "dog": 6},
    )
    sample, intervals = statements.sample_sentences(inputs)
    assert sample.startswith(f"The evaluation used {share} test images of digits, 4 to 6 in each ")
    assert sample.endswith("all of them count, also those the model gets wrong without an attack.")
    assert "95% Wilson" in intervals


@pytest.mark.parametrize(
    ("condition", "name"),
    [
        (Condition("none", "clean", 0.0), "clean"),
        (Condition("all", "worst_case", None), "all threat models, all radii"),
        (Condition("black_box", "worst_case", 8.0), "black box, 8/255"),
        (Condition("white_box", "apgd_ce", 2.5), "white box, APGD-CE 2.5/255"),
    ],
)
def test_conditions_are_told_in_words(condition, name):
    assert statements.condition_name(condition) == name


@pytest.mark.parametrize(
    ("threat_model", "known"),
    [
        ("black_box", "independently trained"),
        ("gray_box", "is no evidence of security"),
        ("white_box", "(BPDA)"),
        ("adaptive", "at the mask"),
        ("undefended", "unaware of any defence"),
        ("score_based", "logits"),
        ("decision_based", "predicted class"),
    ],
)
def test_a_threat_model_is_stated_in_words(threat_model, known):
    config = dataclasses.replace(CONFIG, threat_models=(threat_model,))
    knowledge, budget, *rest = statements.threat_model_statement(threat_model, config)
    assert known in knowledge
    assert "any wrong class" in budget
    assert "ε (L∞ norm), with ε = 4/255 = 0.0157, 8/255 = 0.0314" in budget
    runs_pgd = threat_model in ("black_box", "gray_box", "white_box", "undefended")
    assert any("7 steps of 2/255" in sentence for sentence in rest) == runs_pgd
    is_sampled = threat_model == "decision_based"
    assert any("Only the first 20 images" in sentence for sentence in rest) == is_sampled


def test_what_changes_the_meaning_of_the_figures_is_stated():
    config = EvaluationConfig(norm="2", robust_accuracy_only=True)
    text = " ".join(statements.threat_model_statement("white_box", config))
    assert "L2 norm of at most ε" in text
    assert "L∞" not in text
    assert "only on the images that the attacks before it did not break" in text


def test_a_threat_model_that_was_not_run_says_so_instead_of_its_budget():
    config = EvaluationConfig(threat_models=("black_box",))
    lines = list(statements.threat_model_statement("white_box", config))
    assert lines[1:] == ["The white box was not run."]


def test_gradients_that_16_bits_lose_are_told():
    config = EvaluationConfig(attack_precision="bfloat16")
    shares = tuple(
        VanishedGradients(defence=name, threat_model="white_box", share=share)
        for name, share in (("sfm", 0.1234), ("undefended", 0.05))
    )
    metrics = dataclasses.replace(made_up.inputs().metrics, vanished_gradients=shares)
    (sentence,) = statements.precision_statement(metrics, "white_box", config)
    assert "computed in bfloat16" in sentence
    assert "Up to 12.3% of the gradient entries" in sentence
    assert not list(statements.precision_statement(metrics, "black_box", config))


def test_the_papers_threat_models_are_shown_run_or_not():
    shown = statements.shown_threat_models(EvaluationConfig(threat_models=("adaptive",)))
    assert list(shown.values()) == ["black box", "gray box", "white box", "adaptive"]
