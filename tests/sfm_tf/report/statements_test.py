import dataclasses

import numpy as np
import pytest

from sfm_tf.audit.blessing import Blessing
from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.report import statements
from sfm_tf.report.report_inputs import Audit, Gallery, ReportInputs

IMAGES = np.zeros((1, 2, 2, 1), np.float32)


def figures(correct: int) -> dict:
    return {
        "examples": 1200,
        "correct": correct,
        "accuracy": correct / 1200,
        "accuracy_low": 0.1,
        "accuracy_high": 0.9,
    }


def inputs(threat_models: tuple[str, ...], blessed: bool = False, available: int = 9827):
    worst = [
        {"defence": "sfm", "threat_model": name, "epsilon": None, **figures(240)}
        for name in (*threat_models, "all")
    ]
    return ReportInputs(
        experiment="one",
        dataset="cifar10",
        statistics={"test": {"count": available}},
        class_counts={"cat": 500, "dog": 700},
        evaluation=EvaluationConfig(
            threat_models=threat_models, epsilons=(4.0, 8.0), iterations=7, step_size=2.0
        ),
        metrics={
            "subject": "sfm",
            "clean": [{"defence": "sfm", **figures(1080)}],
            "under_attack": [],
            "worst_case": worst,
        },
        blessing=Blessing(blessed, ("A reason.",)),
        history={},
        manifests=(),
        gallery=Gallery(IMAGES, IMAGES, IMAGES, IMAGES),
    )


@pytest.mark.parametrize(("blessed", "name"), [(True, "BLESSED"), (False, "NOT_BLESSED")])
def test_the_verdict_is_the_name_of_the_blessing(blessed, name):
    line = statements.verdict(inputs(("white_box",), blessed))
    assert line == f"{name} (not audited)"


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ("credible", "credible"),
        ("incomplete", "incomplete"),
        ("not_credible", "not credible"),
    ],
)
def test_the_verdict_says_what_the_audit_does(level, words):
    audited = dataclasses.replace(
        inputs(("white_box",)), audit=Audit((), AuditVerdict(level, "A sentence."))
    )
    assert statements.verdict(audited) == f"NOT_BLESSED (audit: {words})"


def test_the_verdict_says_that_the_white_box_was_not_run():
    assert statements.verdict(inputs(("black_box", "gray_box"))).startswith(
        "NOT_BLESSED (not audited): the white box was not run, so nothing here shows"
    )


def test_a_white_box_against_another_defence_is_none():
    given = inputs(("black_box",))
    elsewhere = {
        "defence": "undefended",
        "threat_model": "white_box",
        "epsilon": None,
        **figures(0),
    }
    given.metrics["worst_case"].append(elsewhere)
    assert "the white box was not run" in statements.verdict(given)


def test_counts_come_from_the_data():
    sample, clean, worst, intervals = statements.summary(inputs(("white_box",)))
    assert sample.startswith("Measured on the first 1,200 of 9,827 test images of cifar10, ")
    assert "500 to 700 in each of 2 classes" in sample
    assert clean.endswith("is right on 1,080 of 1,200 images: 90.0% (10.0–90.0).")
    assert worst.endswith("still right on 240 of 1,200: 20.0% (10.0–90.0).")
    assert "95% Wilson" in intervals


def test_a_whole_split_is_called_so():
    sample = next(statements.summary(inputs(("white_box",), available=1200)))
    assert sample.startswith("Measured on all 1,200 of 1,200 test images")


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
    config = inputs((threat_model,)).evaluation
    knowledge, budget, *rest = statements.threat_model_statement(threat_model, config)
    assert known in knowledge
    assert "any wrong class" in budget
    assert "ε (L∞ norm), for ε of 4, 8 in 1/255" in budget
    runs_pgd = threat_model in ("black_box", "gray_box", "white_box", "undefended")
    assert any("7 steps of 2/255" in sentence for sentence in rest) == runs_pgd
    is_sampled = threat_model == "decision_based"
    assert any("Only the first 20 images" in sentence for sentence in rest) == is_sampled


def test_what_changes_the_meaning_of_the_figures_is_stated():
    config = EvaluationConfig(norm="2", robust_accuracy_only=True)
    text = " ".join(statements.threat_model_statement("white_box", config))
    assert "L2 norm of at most ε" in text
    assert "L∞" not in text
    assert "only on the images that those before it left" in text


def test_a_threat_model_that_was_not_run_says_so_instead_of_its_budget():
    config = inputs(("black_box",)).evaluation
    lines = list(statements.threat_model_statement("white_box", config))
    assert lines[1:] == ["The white box was not run."]


def test_gradients_that_16_bits_lose_are_told():
    config = EvaluationConfig(attack_precision="bfloat16")
    shares = [
        {"defence": name, "threat_model": "white_box", "share": share}
        for name, share in (("sfm", 0.1234), ("undefended", 0.05))
    ]
    metrics = {"vanished_gradients": shares}
    (sentence,) = statements.precision_statement(metrics, "white_box", config)
    assert "computed in bfloat16" in sentence
    assert "up to 12.3% were zero" in sentence
    assert not list(statements.precision_statement(metrics, "black_box", config))


def test_the_papers_threat_models_are_shown_run_or_not():
    shown = statements.shown_threat_models(EvaluationConfig(threat_models=("adaptive",)))
    assert list(shown.values()) == ["black box", "gray box", "white box", "adaptive"]
