import dataclasses

import pytest

from sfm_tf.audit.blessing import Blessing, decide, decision_sentence, write_blessing
from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.evaluation.metrics import CleanAccuracy, Metrics
from sfm_tf.evaluation.settings import EvaluationConfig
from tests import made_up

CONFIG = EvaluationConfig(min_clean_accuracy=0.8, max_clean_drop=0.1, min_worst_case_accuracy=0.3)

INCOMPLETE = AuditVerdict("incomplete", "A doubt.")


def _accuracy(accuracy):
    return {
        "examples": 100,
        "correct": 40,
        "accuracy": accuracy,
        "accuracy_low": accuracy,
        "accuracy_high": accuracy,
    }


def _worst(defence, threat_model, accuracy, epsilon=None):
    return made_up.worst(threat_model, epsilon, _accuracy(accuracy), defence)


def _metrics(clean=0.85, undefended=0.9, worst=0.4, threat_models=("black_box", "white_box")):
    distractors = [_worst("undefended", "all", 0.0), _worst("sfm", "white_box", 0.0, 8.0)]
    return Metrics(
        subject="sfm",
        clean=(
            CleanAccuracy(defence="undefended", **_accuracy(undefended)),
            CleanAccuracy(defence="sfm", **_accuracy(clean)),
        ),
        worst_case=(
            *(_worst("sfm", name, 0.9) for name in threat_models),
            _worst("sfm", "all", worst),
            *distractors,
        ),
    )


def test_a_model_above_every_threshold_is_blessed_with_all_reasons():
    blessing = decide(_metrics(), CONFIG, INCOMPLETE)
    assert blessing.blessed
    assert blessing.reasons == (
        "Clean accuracy of the model is 0.8500, at least the required 0.8000.",
        "Clean accuracy that the defence costs is 0.0500, at most the allowed 0.1000.",
        "Accuracy of the model under the worst attack per image, 40 of 100 images, is "
        "0.4000, at least the required 0.3000.",
        "One white-box threat model was evaluated (at least 1 required).",
        "The audit finds the evaluation incomplete, at least the required incomplete. A doubt.",
    )


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (
            _metrics(clean=0.79, undefended=0.8),
            "Clean accuracy of the model is 0.7900, below the required 0.8000.",
        ),
        (
            _metrics(clean=0.85, undefended=0.96),
            "Clean accuracy that the defence costs is 0.1100, above the allowed 0.1000.",
        ),
        (
            _metrics(worst=0.29),
            "Accuracy of the model under the worst attack per image, 40 of 100 images, "
            "is 0.2900, below the required 0.3000.",
        ),
        (
            _metrics(threat_models=("black_box", "gray_box")),
            "No white-box threat model was evaluated (at least 1 required).",
        ),
    ],
    ids=["clean", "drop", "worst_case", "no_white_box"],
)
def test_each_threshold_can_deny_the_blessing_alone(metrics, reason):
    assert decide(metrics, CONFIG, INCOMPLETE) == Blessing(False, (reason,))


def test_nothing_makes_up_for_a_white_box_that_was_not_run():
    perfect = _metrics(1.0, 1.0, 1.0, threat_models=("black_box", "adaptive", "score_based"))
    lenient = EvaluationConfig(
        min_clean_accuracy=0.0,
        max_clean_drop=1.0,
        min_worst_case_accuracy=0.0,
        required_audit="not_credible",
    )
    assert not decide(perfect, lenient, AuditVerdict("credible", "All is well.")).blessed


def test_figures_at_the_thresholds_are_blessed():
    # 0.9 - 0.8 is 0.09999999999999998 and 0.8 - 0.7 is 0.10000000000000009.
    for clean, undefended in ((0.8, 0.9), (0.7, 0.8)):
        config = EvaluationConfig(
            min_clean_accuracy=clean, max_clean_drop=0.1, min_worst_case_accuracy=0.4
        )
        assert decide(_metrics(clean=clean, undefended=undefended), config, INCOMPLETE).blessed


@pytest.mark.parametrize(
    ("level", "required", "blessed"),
    [
        ("not_credible", "not_credible", True),
        ("not_credible", "incomplete", False),
        ("incomplete", "incomplete", True),
        ("incomplete", "credible", False),
        ("credible", "credible", True),
    ],
)
def test_figures_that_the_audit_does_not_believe_are_not_blessed(level, required, blessed):
    config = dataclasses.replace(CONFIG, required_audit=required)
    verdict = decide(_metrics(), config, AuditVerdict(level, "Said why."))
    assert verdict.blessed == blessed
    assert "Said why." in verdict.reasons[-1]


def test_a_run_without_any_attack_is_not_blessed():
    metrics = dataclasses.replace(_metrics(), worst_case=())
    assert not decide(metrics, CONFIG, INCOMPLETE).blessed


@pytest.mark.parametrize(("clean", "blessed"), [(0.9, True), (0.7, False)])
def test_a_model_of_ones_own_is_judged_without_a_bare_one(clean, blessed):
    metrics = Metrics(
        subject="model",
        clean=(CleanAccuracy(defence="model", **_accuracy(clean)),),
        worst_case=tuple(_worst("model", name, 0.4) for name in ("white_box", "all")),
    )
    found = decide(metrics, CONFIG, INCOMPLETE)
    assert found.blessed == blessed
    assert not any("costs" in reason for reason in found.reasons)


def test_one_file_holds_the_reasons_and_the_other_is_gone(tmp_path):
    write_blessing(tmp_path, Blessing(True, ("All is well.", "Truly.")))
    assert [path.name for path in tmp_path.iterdir()] == ["BLESSED"]
    assert (tmp_path / "BLESSED").read_text() == "All is well.\nTruly.\n"
    write_blessing(tmp_path, Blessing(False, ("It fell.",)))
    assert [path.name for path in tmp_path.iterdir()] == ["NOT_BLESSED"]
    assert (tmp_path / "NOT_BLESSED").read_text() == "It fell.\n"
    write_blessing(tmp_path, Blessing(True, ("All is well.",)))
    assert [path.name for path in tmp_path.iterdir()] == ["BLESSED"]


@pytest.mark.parametrize(
    ("metrics", "blessed", "verdict", "sentence"),
    [
        (
            _metrics(),
            True,
            INCOMPLETE,
            "The model is blessed: it is right on 85.0% of 100 images without an attack and on "
            "40.0% after the worst attack on each image (without the defence: 90.0% and 0.0%), and "
            "this evaluation is incomplete according to the audit.",
        ),
        (
            _metrics(worst=0.125),
            False,
            AuditVerdict("not_credible", "A fault."),
            "The model is not blessed: it is right on 85.0% of 100 images without an attack and on "
            "12.5% after the worst attack on each image (without the defence: 90.0% and 0.0%), and "
            "this evaluation is not credible according to the audit.",
        ),
        (
            dataclasses.replace(_metrics(), worst_case=()),
            False,
            None,
            "The model is not blessed: it is right on 85.0% of 100 images without an attack and it "
            "was not attacked, and this evaluation was not audited.",
        ),
    ],
)
def test_the_answer_is_one_sentence(metrics, blessed, verdict, sentence):
    assert decision_sentence(metrics, Blessing(blessed, ()), verdict) == sentence
