import dataclasses
import re

import numpy as np
import pytest

from sfm_tf.audit import strength_rules as rules
from sfm_tf.audit.evidence import Evidence, count_classes
from sfm_tf.audit.probes.measurements import (
    Answers,
    AtRadius,
    Difference,
    InNorm,
    Redrawn,
    Repeatability,
    SquareAnswers,
    TargetedAnswers,
    Transferred,
)
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.results import join_results
from sfm_tf.evaluation.settings import EvaluationConfig
from tests import made_up

COUNT = 20
LABELS = np.arange(COUNT) % 4
CONFIG = EvaluationConfig(epsilons=(4.0, 8.0), decision_examples=10)


def _rows(attack, right, epsilon=8.0, threat_model="white_box", count=COUNT):
    """Results of an attack that leaves the first `right` images right, or those of an array."""
    keeps = np.arange(COUNT) < right if np.isscalar(right) else np.asarray(right)
    prediction = np.where(keeps, LABELS, (LABELS + 1) % 4)[:count]
    return made_up.answers("sfm", threat_model, attack, epsilon, LABELS, LABELS, prediction)


def _answer(right, kind=Answers, count=COUNT, **others):
    return kind.of(np.arange(count) < right, **others)


def _square(survivors, count, right):
    return _answer(right, SquareAnswers, count, queries=1000, survivors=survivors)


PROBES = dataclasses.replace(
    made_up.PROBES,
    settings=dataclasses.replace(made_up.PROBES.settings, examples=COUNT),
    no_radius=_answer(20),
    margin=_answer(8),
    redrawn=_answer(8, Redrawn, copies=10),
    ladder=tuple(
        _answer(right, AtRadius, epsilon=epsilon)
        for epsilon, right in ((0.0, 20), (2.0, 18), (4.0, 12), (8.0, 8), (16.0, 1), (127.5, 0))
    ),
    convergence=dataclasses.replace(
        made_up.PROBES.convergence, base=_answer(8), single_step=_answer(14)
    ),
    noise=dataclasses.replace(made_up.PROBES.noise, uniform=_answer(18), gaussian=_answer(19)),
    square=_square(8, 8, 8),
    transfer=(
        _answer(15, Transferred, source="independent"),
        _answer(10, Transferred, source="bare"),
    ),
    targeted=_answer(13, TargetedAnswers, reached=7),
    other_norm=_answer(9, InNorm, norm="2", epsilon=30.0),
)
CLEAN = _rows("clean", COUNT, 0.0, "none")
WHITE = (
    _rows("fgsm", 16, 4.0),
    _rows("fgsm", 14),
    _rows("pgd", 12, 4.0),
    _rows("pgd", 8),
)
OTHERS = (
    _rows("pgd", 15, 8.0, "black_box"),
    _rows("autoattack", 7),
    _rows("square", 9, 8.0, "score_based"),
    _rows("hop_skip_jump", 9, 8.0, "decision_based", count=10),
)


ALL = Difference(images=16, labels=16, largest=0.1)
DRAWING = Repeatability(
    examples=16, side_by_side=ALL, calls=ALL, batches=ALL, lowest=-1.0, highest=2.0
)


def _evidence(*tables, probes=PROBES, config=CONFIG, is_random=False, **changed_probes):
    results = join_results(tables or (CLEAN, *WHITE, *OTHERS))
    return Evidence(
        metrics=summarise(results),
        results=results,
        probes=probes and dataclasses.replace(probes, **changed_probes),
        config=config,
        class_counts=count_classes(LABELS, 4),
        repeatability={"served": DRAWING} if is_random else {},
    )


JUDGES = (
    rules.judge_iteration,
    rules.judge_growth,
    rules.judge_huge_radius,
    rules.judge_no_radius,
    rules.judge_margin,
    rules.judge_redrawn,
    rules.judge_white_box_strongest,
    rules.judge_gradient_free,
    rules.judge_noise,
    rules.judge_gaussian_noise,
    rules.judge_transfer,
    rules.judge_diversity,
    rules.judge_goals,
)


@pytest.mark.parametrize("judge", JUDGES)
def test_a_sound_evaluation_passes(judge):
    status, figure = judge(_evidence())
    assert status == "pass", figure


@pytest.mark.parametrize("judge", JUDGES)
def test_without_measurements_nothing_passes(judge):
    assert judge(_evidence(CLEAN, probes=None)).status == "not_run"


@pytest.mark.parametrize(
    ("single", "many", "told"),
    [
        (18, 2, "An attack of many steps left 16 fewer of 20 images right than a"),
        (7, 7, "An attack of many steps left as many of 20 images right as a"),
        (7, 8, "An attack of many steps left 1 more of 20 images right than a"),
    ],
)
def test_a_count_is_told_without_a_sign(single, many, told):
    evidence = _evidence(CLEAN, _rows("fgsm", single), _rows("pgd", many), probes=None)
    _, figure = rules.judge_iteration(evidence)
    assert figure == f"{told} single step."


def test_of_several_comparisons_the_worst_is_told():
    _, figure = rules.judge_iteration(_evidence())
    assert re.match(r"In the worst of \d comparisons, an attack of many steps left ", figure)


def _noise(**changes):
    return {"noise": dataclasses.replace(PROBES.noise, **changes)}


def _transfer(right):
    return {"transfer": [_answer(right, Transferred, source="independent")]}


LAST = np.arange(COUNT) >= COUNT - 8

CASES = {
    "one step breaks more, in the probes": (
        rules.judge_iteration,
        _evidence(convergence=dataclasses.replace(PROBES.convergence, single_step=_answer(4))),
        "fail",
        "left 4 more of 20 images right than a",
    ),
    "one step breaks more, in the results": (
        rules.judge_iteration,
        _evidence(CLEAN, _rows("fgsm", 4), _rows("pgd", 9), probes=None),
        "fail",
        "An attack of many steps left 5 more of 20 images right than a single step.",
    ),
    "a larger ball breaks less, in the probes": (
        rules.judge_growth,
        _evidence(ladder=PROBES.ladder[3:1:-1]),
        "fail",
        "PGD 8, 12 of 20",
    ),
    "a larger ball breaks less, in the results": (
        rules.judge_growth,
        _evidence(CLEAN, _rows("pgd", 9, 4.0), _rows("pgd", 14), probes=None),
        "fail",
        "white box 9, 14 of 20",
    ),
    "a ball without limits leaves something": (
        rules.judge_huge_radius,
        _evidence(ladder=[_answer(6, AtRadius, epsilon=127.5)]),
        "fail",
        "right on 6 of 20 images; one and the same answer is right on 5 at most",
    ),
    "an attack that may change nothing breaks something": (
        rules.judge_no_radius,
        _evidence(no_radius=_answer(17)),
        "fail",
        "At a radius of 0 the model is right on 17 of 20 images, without an attack on 20; the "
        "answer to 3 images is another one.",
    ),
    "one answer is another one at radius 0": (
        rules.judge_no_radius,
        _evidence(no_radius=_answer(19)),
        "warn",
        "the answer to 1 images",
    ),
    "a random model fares much worse at radius 0": (
        rules.judge_no_radius,
        _evidence(no_radius=_answer(5), is_random=True),
        "fail",
        "right on 5 of 20",
    ),
    "a loss without a scale breaks more": (
        rules.judge_margin,
        _evidence(margin=_answer(3)),
        "fail",
        "leaves 3 of 20 images right and breaks 4 that the evaluation left",
    ),
    "invisible noise breaks more": (
        rules.judge_redrawn,
        _evidence(redrawn=_answer(1, Redrawn, copies=10)),
        "fail",
        "10 copies were shown, each with noise below half a grey level: they break 6 of the 7 of "
        "20 images",
    ),
    "a random model may be asked again": (
        rules.judge_redrawn,
        _evidence(redrawn=_answer(1, Redrawn, copies=10), is_random=True),
        "warn",
        "they break 6 of the 7",
    ),
    "the gray box breaks others": (
        rules.judge_white_box_strongest,
        _evidence(CLEAN, *WHITE, _rows("pgd", LAST, 8.0, "gray_box")),
        "fail",
        "gray box 8 of 20",
    ),
    "the black box breaks a few others": (
        rules.judge_white_box_strongest,
        _evidence(CLEAN, *WHITE, _rows("pgd", 6, 8.0, "black_box")),
        "warn",
        "black box 2 of 20",
    ),
    "an attack that asks for scores breaks others": (
        rules.judge_gradient_free,
        _evidence(CLEAN, *WHITE, _rows("square", 2, 8.0, "score_based"), probes=None),
        "fail",
        "score based 6 of 20",
    ),
    "an attack that asks for scores is run in the white box": (
        rules.judge_gradient_free,
        _evidence(CLEAN, *WHITE, _rows("square", 2), probes=None),
        "fail",
        "white box 6 of 20",
    ),
    "an attack that asks for labels breaks others of few images": (
        rules.judge_gradient_free,
        _evidence(CLEAN, *WHITE, _rows("hop_skip_jump", 4, 8.0, "decision_based", 10), probes=None),
        "fail",
        "decision based 4 of 10",
    ),
    "Square breaks half of what was left": (
        rules.judge_gradient_free,
        _evidence(square=_square(12, 6, 3)),
        "fail",
        "Square (where PGD and more effort failed) 6 of 20",
    ),
    "noise breaks others": (
        rules.judge_noise,
        _evidence(**_noise(uniform=Answers.of(LAST))),
        "fail",
        "only noise breaks 8",
    ),
    "noise breaks more than a transfer": (
        rules.judge_noise,
        _evidence(**_transfer(20)),
        "warn",
        "images made on another model leave 20",
    ),
    "Gaussian noise breaks others": (
        rules.judge_gaussian_noise,
        _evidence(**_noise(gaussian=_answer(2))),
        "fail",
        "is right on 2 of 20",
    ),
    "a transfer breaks others": (
        rules.judge_transfer,
        _evidence(**_transfer(4)),
        "fail",
        "independent model 4 of 20",
    ),
    "only PGD": (
        rules.judge_diversity,
        _evidence(CLEAN, *WHITE),
        "warn",
        "Not run: AutoAttack in the white box, a score-based attack on all images, "
        "a decision-based attack. Square was probed with 1000 queries.",
    ),
    "a target is reached more easily": (
        rules.judge_goals,
        _evidence(targeted=_answer(3, TargetedAnswers, reached=17)),
        "fail",
        "on 17 of 20 images and leaves 3 right",
    ),
    "the other norm does nothing": (
        rules.judge_goals,
        _evidence(other_norm=_answer(20, InNorm, norm="2", epsilon=30.0)),
        "warn",
        "in the L2 norm, in a ball of the same volume, 20",
    ),
}


@pytest.mark.parametrize(("judge", "evidence", "status", "part"), CASES.values(), ids=CASES)
def test_a_flaw_is_found(judge, evidence, status, part):
    judgement = judge(evidence)
    assert judgement.status == status, judgement.figure
    assert part in judgement.figure


def test_what_the_evaluation_broke_by_itself_is_no_news():
    broken = (CLEAN, *WHITE, _rows("apgd_dlr", 1))
    noisy = _answer(1, Redrawn, copies=10)
    evidence = _evidence(*broken, margin=_answer(1), redrawn=noisy)
    assert rules.judge_margin(evidence).status == "pass"
    assert rules.judge_redrawn(evidence).status == "pass"


def test_a_random_model_answers_a_few_images_otherwise_at_radius_0():
    evidence = _evidence(no_radius=_answer(17), is_random=True)
    assert rules.judge_no_radius(evidence).status == "pass"


def test_attacks_that_go_on_with_what_is_left_do_not_compare():
    config = dataclasses.replace(CONFIG, robust_accuracy_only=True)
    evidence = _evidence(CLEAN, *WHITE, probes=None, config=config)
    assert rules.judge_iteration(evidence).status == "not_run"


def test_what_the_adaptive_attacker_breaks_counts_as_white_box():
    tables = (CLEAN, *WHITE, _rows("pgd", 4, 8.0, "gray_box"))
    adaptive = _rows("adaptive_frozen_mask", 4, 8.0, "adaptive")
    assert rules.judge_white_box_strongest(_evidence(*tables)).status == "fail"
    assert rules.judge_white_box_strongest(_evidence(*tables, adaptive)).status == "pass"


def test_square_needs_no_images_where_gradients_left_none():
    evidence = _evidence(CLEAN, *WHITE, square=_square(0, 0, 0))
    assert rules.judge_gradient_free(evidence).status == "pass"


def test_the_parts_of_autoattack_are_as_good_as_it():
    parts = [_rows(name, 8) for name in ("apgd_ce", "apgd_t", "fab_t", "square")]
    decisions = _rows("hop_skip_jump", 9, 8.0, "decision_based", count=10)
    assert rules.judge_diversity(_evidence(CLEAN, *parts, decisions)).status == "pass"


def test_a_black_box_of_the_evaluation_is_a_transfer_too():
    assert rules.judge_transfer(_evidence(transfer=[])).status == "pass"
    assert rules.judge_transfer(_evidence(CLEAN, *WHITE, transfer=[])).status == "not_run"
