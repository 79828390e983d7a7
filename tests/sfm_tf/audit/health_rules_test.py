import dataclasses

import numpy as np
import pytest

from sfm_tf.audit import health_rules as rules
from sfm_tf.audit.evidence import Evidence
from sfm_tf.audit.probes.measurements import (
    AfterSteps,
    Answers,
    Convergence,
    Difference,
    Draws,
    GradientHealth,
    KnownBreaks,
    PartsAnswers,
    Repeatability,
    StageGradient,
    UnderSurrogate,
)
from sfm_tf.evaluation.metrics import Metrics, VanishedGradients
from sfm_tf.evaluation.settings import EvaluationConfig
from tests import made_up

COUNT = 100


def _answer(right, kind=Answers, **others):
    """The answers of a model that is right on the first images, or on those of a range."""
    places = range(right) if isinstance(right, int) else right
    return kind.of(np.isin(np.arange(COUNT), list(places)), **others)


def _stages(**changes):
    norms = {"logits": 1.0, "classifier_input": 2.0, "mask": 0.5, "image": 0.4}
    healthy = {"zero_share": 0.0, "not_finite_share": 0.0}
    stages = (
        StageGradient(**{"stage": name, "median_norm": norm, **healthy, **changes.get(name, {})})
        for name, norm in norms.items()
    )
    return GradientHealth(stages=tuple(stages), losses={})


def _part(masker, preprocessor, right):
    return PartsAnswers(
        masker=masker, preprocessor=preprocessor, clean=_answer(99), attacked=_answer(right)
    )


def _surrogates(smooth=20, ignored=24):
    return tuple(
        _answer(right, UnderSurrogate, surrogate=name, used=name == "identity")
        for name, right in (("identity", 20), ("smooth", smooth), ("ignored", ignored))
    )


CONVERGENCE = Convergence(
    base=_answer(20),
    single_step=_answer(60),
    double_iterations=_answer(19),
    more_restarts=_answer(18),
    half_step=_answer(40),
    double_step=_answer(20),
    restarts=4,
)
BREAKS = KnownBreaks(
    bare_clean=_answer(99),
    bare=_answer(10),
    bit_depth=_answer(14),
    scaled=_answer(11),
    factor=3.0,
    plain_blind_share=0.9,
    stable_blind_share=0.0,
    saturated_zero_share=0.98,
)
PROBES = dataclasses.replace(
    made_up.PROBES,
    convergence=CONVERGENCE,
    gradients=_stages(),
    surrogates=_surrogates(),
    parts=(_part(False, False, 10), _part(True, False, 20), _part(True, True, 30)),
    known_breaks=BREAKS,
)


def _entry(threat_model="white_box", attack="pgd", zero_gradient_share=0.01):
    figures = made_up.accuracy(20, COUNT)
    return made_up.attacked(
        threat_model, attack, 8.0, figures, zero_gradient_share=zero_gradient_share
    )


ENTRY = _entry()


def _difference(images, largest):
    return Difference(images=images, labels=0, largest=largest)


def _repeated(side_by_side=0, calls=0, batches=0, lowest=-9.0, highest=20.0):
    """Answers to 16 images of which so many differ, by a hundredth of the largest logit."""
    return Repeatability(
        examples=16,
        side_by_side=_difference(side_by_side, 1e-2 if side_by_side else 0.0),
        calls=_difference(calls, 1e-2 if calls else 0.0),
        batches=_difference(batches, 1e-2 if batches else 3e-6),
        lowest=lowest,
        highest=highest,
    )


SAME = {"served": _repeated()}
DRAWING = {"served": _repeated(), "attacked": _repeated(15, 15, 16)}


def _evidence(
    probes=PROBES,
    attacks=(ENTRY,),
    vanished=(),
    config=None,
    repeatability=SAME,
    **changed_probes,
):
    return Evidence(
        metrics=Metrics(
            subject="sfm",
            clean=(),
            under_attack=tuple(attacks),
            vanished_gradients=tuple(vanished),
        ),
        results=made_up.answers("", "", "", 0.0, [], [], []),
        probes=probes and dataclasses.replace(probes, **changed_probes),
        config=config or EvaluationConfig(),
        class_counts={},
        repeatability=repeatability,
    )


JUDGES = (
    rules.judge_convergence,
    rules.judge_step_size,
    rules.judge_gradients,
    rules.judge_loss,
    rules.judge_surrogates,
    rules.judge_parts,
    rules.judge_known_breaks,
    rules.judge_draws,
    rules.judge_repeatability,
    rules.judge_outputs,
)


@pytest.mark.parametrize("judge", JUDGES)
def test_a_sound_attack_passes(judge):
    status, figure = judge(_evidence())
    assert status == "pass", figure


@pytest.mark.parametrize("judge", JUDGES)
def test_without_measurements_nothing_passes(judge):
    assert judge(_evidence(None, (), repeatability={})).status == "not_run"


def _convergence(**changes):
    return _evidence(convergence=dataclasses.replace(CONVERGENCE, **changes))


def _curve(*losses):
    return _evidence(
        curve=[
            AfterSteps(steps=steps, median_loss=loss, mean_loss=loss, success=0.0)
            for steps, loss in enumerate(losses)
        ]
    )


def _breaks(**changes):
    return _evidence(known_breaks=dataclasses.replace(BREAKS, **changes))


def _random(**draws):
    return _evidence(repeatability=DRAWING, draws=Draws(**draws) if draws else None)


def _again(*differing, **outputs):
    return _evidence(repeatability={"served": _repeated(*differing, **outputs)})


AVERAGING = EvaluationConfig(gradient_samples=4)


LOST = VanishedGradients(defence="sfm", threat_model="white_box", share=0.3)

CASES = {
    "twice the steps break a few more": (
        rules.judge_convergence,
        _convergence(double_iterations=_answer(15)),
        "warn",
        "with twice the steps it leaves 15 correct and breaks 5 further images",
    ),
    "more starts break many more": (
        rules.judge_convergence,
        _convergence(more_restarts=_answer(10)),
        "fail",
        "with 4 starts it leaves 10 correct and breaks 10 further images",
    ),
    "more steps break others": (
        rules.judge_convergence,
        _convergence(double_iterations=_answer(range(10, 40))),
        "fail",
        "with twice the steps it leaves 30 correct and breaks 10 further images",
    ),
    "half the step breaks more": (
        rules.judge_step_size,
        _convergence(half_step=_answer(10)),
        "fail",
        "with half the step it leaves 10 correct and breaks 10",
    ),
    "no gradient at a stage": (
        rules.judge_gradients,
        _evidence(gradients=_stages(mask={"zero_share": 0.5})),
        "fail",
        "mask 50.0%",
    ),
    "a gradient that is not a number": (
        rules.judge_gradients,
        _evidence(gradients=_stages(image={"not_finite_share": 0.05})),
        "warn",
        "image 5.0%",
    ),
    "attacks that started without a gradient": (
        rules.judge_gradients,
        _evidence(attacks=[_entry(zero_gradient_share=0.4)]),
        "fail",
        "at the start of attacks 40.0%",
    ),
    "a gradient that 16 bits do not show": (
        rules.judge_gradients,
        _evidence(vanished=[LOST]),
        "fail",
        "entries lost in 16 bits 30.0%",
    ),
    "a stage that passes nothing on": (
        rules.judge_gradients,
        _evidence(gradients=_stages(image={"median_norm": 1e-6})),
        "warn",
        "image 1e-06",
    ),
    "a loss that falls": (
        rules.judge_loss,
        _curve(1.0, 0.9, 0.5),
        "fail",
        "1 after 0, 0.9 after 1, 0.5 after 2",
    ),
    "a loss that does not move": (
        rules.judge_loss,
        _curve(1.0, 1.0),
        "fail",
        "1 after 0, 1 after 1",
    ),
    "a loss that rises and falls": (rules.judge_loss, _curve(1.0, 3.0, 2.0), "warn", "3 after 1"),
    "the other surrogate breaks more": (
        rules.judge_surrogates,
        _evidence(attacks=[_entry(threat_model="gray_box")], surrogates=_surrogates(smooth=5)),
        "fail",
        "identity 20, smooth 5, ignored 24. The model's own is identity",
    ),
    "no surrogate breaks more": (
        rules.judge_surrogates,
        _evidence(surrogates=_surrogates(ignored=15)),
        "warn",
        "ignored 15",
    ),
    "a defence that is worth nothing": (
        rules.judge_parts,
        _evidence(parts=[_part(False, False, 10), _part(True, False, 12)]),
        "warn",
        "10 on the bare classifier, 12 behind the masker alone (without an attack: 99, 99). The "
        "defence as a whole gains too little to count",
    ),
    "a broken defence that stands": (
        rules.judge_known_breaks,
        _breaks(bit_depth=_answer(60)),
        "fail",
        "60 with a bit depth of 3",
    ),
    "scaled logits that stand": (
        rules.judge_known_breaks,
        _breaks(scaled=_answer(25)),
        "warn",
        "25 with its logits scaled up",
    ),
    "logits that stand until they are scaled": (
        rules.judge_known_breaks,
        _breaks(bare=_answer(80), bit_depth=_answer(80), scaled=_answer(5)),
        "fail",
        "leaves 80 correct on the bare classifier",
    ),
    "lost gradients that nobody notices": (
        rules.judge_known_breaks,
        _breaks(saturated_zero_share=0.3),
        "fail",
        "30% of the images are reported",
    ),
    "a bare classifier that is hardly broken": (
        rules.judge_known_breaks,
        _breaks(bare=_answer(95), bit_depth=_answer(95), scaled=_answer(95)),
        "warn",
        "leaves 95 correct on the bare classifier",
    ),
    "a random defence that was asked once": (
        rules.judge_draws,
        _random(),
        "not_run",
        "measured with one draw only",
    ),
    "what is attacked draws, and nobody averages": (
        rules.judge_repeatability,
        _random(),
        "fail",
        "attacked model: of 16 images, 15 are answered differently side by side in one batch, "
        "15 in another call, 16 in another batch (logits differ by up to 0.01 of the largest). "
        "The model draws anew for each image, and no attack averaged",
    ),
    "a model that mirrors every other image": (
        rules.judge_repeatability,
        _again(14, 9, 9),
        "fail",
        "The model draws anew",
    ),
    "a model that changes": (
        rules.judge_repeatability,
        _again(0, 16, 16),
        "fail",
        "The model changes from call to call",
    ),
    "statistics of the batch": (
        rules.judge_repeatability,
        _again(0, 0, 16),
        "fail",
        "The model depends on the other images of the batch",
    ),
    "averaging does not help where a batch counts": (
        rules.judge_repeatability,
        _evidence(config=AVERAGING, repeatability={"served": _repeated(0, 0, 16)}),
        "fail",
        "The model depends on the other images of the batch",
    ),
    "outputs of a sigmoid": (
        rules.judge_outputs,
        _again(lowest=0.0, highest=0.4),
        "warn",
        "The model's outputs are from 0 to 0.4; logits have both signs",
    ),
    "outputs of a hyperbolic tangent": (
        rules.judge_outputs,
        _again(lowest=-1.0, highest=1.0),
        "warn",
        "not all within [-1, 1]",
    ),
    "outputs of a rectifier": (
        rules.judge_outputs,
        _again(lowest=0.0, highest=30.0),
        "warn",
        "from 0 to 30",
    ),
    "draws that differ": (
        rules.judge_draws,
        _random(clean=[_answer(90), _answer(91)], attacked=[_answer(20), _answer(45)]),
        "warn",
        "Accuracy over 2 draws: clean 90.0% to 91.0%; attacked 20.0% to 45.0%.",
    ),
}


@pytest.mark.parametrize(("judge", "evidence", "status", "part"), CASES.values(), ids=CASES)
def test_a_flaw_is_found(judge, evidence, status, part):
    judgement = judge(evidence)
    assert judgement.status == status, judgement.figure
    assert part in judgement.figure


def test_an_evaluation_with_as_many_starts_needs_no_more():
    config = dataclasses.replace(EvaluationConfig(), restarts=4)
    convergence = dataclasses.replace(CONVERGENCE, more_restarts=_answer(2))
    evidence = _evidence(convergence=convergence, config=config)
    assert rules.judge_convergence(evidence).status == "pass"


def test_what_any_surrogate_breaks_counts_in_the_white_box_already():
    evidence = _evidence(attacks=[_entry()], surrogates=_surrogates(smooth=5))
    assert rules.judge_surrogates(evidence).status == "pass"
    evidence = _evidence(attacks=[_entry()], surrogates=_surrogates(ignored=5))
    assert rules.judge_surrogates(evidence).status == "fail"


def test_gradients_of_attacks_are_judged_without_probes():
    assert rules.judge_gradients(_evidence(probes=None)).status == "pass"


def test_without_a_preprocessing_there_is_no_surrogate_to_judge():
    assert rules.judge_surrogates(_evidence(surrogates=[])).status == "pass"


def test_a_bare_model_has_no_part_to_credit():
    assert rules.judge_parts(_evidence(parts=[_part(False, False, 10)])).status == "pass"


def test_attacks_that_average_may_follow_draws():
    evidence = _evidence(config=AVERAGING, repeatability=DRAWING)
    status, figure = rules.judge_repeatability(evidence)
    assert (status, "attacks average over the draws" in figure) == ("pass", True)
    rand = _evidence(attacks=[_entry(attack="autoattack_rand")], repeatability=DRAWING)
    assert rules.judge_repeatability(rand).status == "pass"


def test_one_image_of_sixteen_may_differ_where_a_rounding_flips_a_level():
    assert rules.judge_repeatability(_again(1, 1, 1)).status == "pass"
    assert rules.judge_repeatability(_again(0, 0, 2)).status == "fail"


def test_a_random_model_has_a_gradient_where_a_draw_is_wrong():
    breaks = dataclasses.replace(BREAKS, saturated_zero_share=0.7)
    assert rules.judge_known_breaks(_evidence(known_breaks=breaks)).status == "fail"
    drawing = _evidence(known_breaks=breaks, repeatability=DRAWING)
    assert rules.judge_known_breaks(drawing).status == "pass"


def test_draws_that_agree_pass():
    draws = {"clean": [_answer(90), _answer(91)], "attacked": [_answer(20), _answer(25)]}
    assert rules.judge_draws(_random(**draws)).status == "pass"
