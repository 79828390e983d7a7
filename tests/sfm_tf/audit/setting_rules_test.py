import dataclasses

import numpy as np
import pytest

from sfm_tf.audit import setting_rules as rules
from sfm_tf.audit.evidence import Evidence, count_classes
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.results import join_results
from sfm_tf.evaluation.settings import EvaluationConfig
from tests import made_up
from tests.made_up import PROBES

COUNT = 20
LABELS = np.arange(COUNT) % 4
CONFIG = EvaluationConfig(
    epsilons=(8.0,), threat_models=("black_box", "white_box", "adaptive"), decision_examples=5
)
PACKAGES = {
    "adversarial-robustness-toolbox": "1.20.1",
    "keras": "3.15.1",
    "numpy": "2.2.6",
    "tensorflow": "2.21.0",
}


def _rows(
    attack,
    threat_model="white_box",
    defence="sfm",
    right=10,
    count=COUNT,
    epsilon=8.0,
    **values,
):
    prediction = np.where(np.arange(COUNT) < right, LABELS, (LABELS + 1) % 4)[:count]
    names = defence, threat_model, attack, epsilon
    sizes = {"linf": 8.0 / 255.0, "l2": 0.5}
    return made_up.answers(*names, LABELS, LABELS, prediction, **{**sizes, **values})


def _clean(defence, right=COUNT):
    return _rows("clean", "none", defence, right, epsilon=0.0, linf=0.0, l2=0.0)


CLEAN = (_clean("undefended"), _clean("sfm"))
ATTACKED = (
    _rows("fgsm", right=14),
    _rows("pgd", right=8),
    _rows("pgd", "black_box", right=15),
    _rows("adaptive_mask_aware", "adaptive"),
)


def _evidence(*tables, metrics=None, **changes):
    results = join_results(tables or (*CLEAN, *ATTACKED))
    evidence = Evidence(
        metrics=dataclasses.replace(summarise(results), **(metrics or {})),
        results=results,
        probes=PROBES,
        config=CONFIG,
        class_counts=count_classes(LABELS, 4),
        packages=PACKAGES,
        seed=0,
    )
    return dataclasses.replace(evidence, **changes)


IMBALANCED = np.repeat([0, 1], [46, 13])


def _imbalanced(predictions):
    """Answers to 46 cats and 13 dogs."""
    answered = made_up.answers(
        "sfm", "none", "clean", 0.0, IMBALANCED, predictions, predictions, linf=0.0, l2=0.0
    )
    return _evidence(answered, class_counts=count_classes(IMBALANCED, 2, ("cat", "dog")))


def _subject(**changes):
    subject = dataclasses.replace(PROBES.subject, **changes)
    return dataclasses.replace(PROBES, subject=subject)


def _headline(correct, examples):
    return {"worst_case": (made_up.worst("all", None, made_up.accuracy(correct, examples)),)}


@pytest.mark.parametrize(
    "judge",
    [
        rules.judge_threat_model,
        rules.judge_same_samples,
        rules.judge_clean_accuracy,
        rules.judge_chance,
        rules.judge_radius,
        rules.judge_white_box,
        rules.judge_adaptive,
        rules.judge_worst_case,
        rules.judge_valid_images,
        rules.judge_recorded,
        rules.judge_broken_baselines,
    ],
)
def test_a_sound_evaluation_passes(judge):
    status, figure = judge(_evidence())
    assert status == "pass", figure


CASES = {
    "an attacker that nobody stated": (
        rules.judge_threat_model,
        _evidence(config=dataclasses.replace(CONFIG, threat_models=("white_box",))),
        "fail",
        "do not name these threat models: adaptive, black box",
    ),
    "no attack": (rules.judge_threat_model, _evidence(*CLEAN), "fail", "No attack was run"),
    "other images for one attack": (
        rules.judge_same_samples,
        _evidence(*CLEAN, _rows("pgd", count=12)),
        "fail",
        "sfm, white_box, pgd, 8.0",
    ),
    "images left out": (
        rules.judge_same_samples,
        _evidence(*CLEAN, _rows("pgd", image_index=np.arange(COUNT) + 1)),
        "fail",
        "Not all rows use the same",
    ),
    "an image twice": (
        rules.judge_same_samples,
        _evidence(*CLEAN, _rows("pgd", image_index=np.r_[np.arange(COUNT - 2), 0, COUNT - 1])),
        "fail",
        "Not all rows use the same",
    ),
    "labels that differ": (
        rules.judge_same_samples,
        _evidence(*CLEAN, _rows("pgd", label=LABELS[::-1])),
        "fail",
        "the label of an image differs",
    ),
    "a class without images": (
        rules.judge_same_samples,
        _evidence(class_counts=count_classes(LABELS, 5)),
        "warn",
        "0 to 5 in each of 5 classes",
    ),
    "a count that is another": (
        rules.judge_same_samples,
        _evidence(class_counts={"0": 30}),
        "fail",
        "the same 30 images",
    ),
    "no bare classifier": (
        rules.judge_clean_accuracy,
        _evidence(_clean("sfm"), *ATTACKED),
        "not_run",
        "was not scored",
    ),
    "a model that guesses": (
        rules.judge_chance,
        _evidence(_clean("undefended"), _clean("sfm", right=5)),
        "fail",
        "is right on 5 of 20 images; always answering '0' is right on 5 (25.0%, 95% interval "
        "11.2–46.9%).",
    ),
    "a model that is better by chance": (
        rules.judge_chance,
        _evidence(_clean("undefended"), _clean("sfm", right=9)),
        "fail",
        "is right on 9 of 20 images",
    ),
    "a model that collapsed on images mostly of one class": (
        rules.judge_chance,
        _imbalanced(np.zeros(59, int)),
        "fail",
        "is right on 46 of 59 images; always answering 'cat' is right on 46 (78.0%, 95% interval "
        "65.9–86.6%). It predicts one class only: 'cat' on all 59 images.",
    ),
    "a model that collapsed to the rare class": (
        rules.judge_chance,
        _imbalanced(np.ones(59, int)),
        "fail",
        "It predicts one class only: 'dog' on all 59 images.",
    ),
    "a radius of another unit": (
        rules.judge_radius,
        _evidence(config=dataclasses.replace(CONFIG, epsilons=(0.01, 0.031))),
        "warn",
        "The largest L∞ radius is 0.031/255 = 0.00012, below 0.5/255; --epsilons are in 1/255. "
        "Did you mean 7.91?",
    ),
    "an L2 radius of another unit": (
        rules.judge_radius,
        _evidence(config=dataclasses.replace(CONFIG, norm="2", epsilons=(0.5,))),
        "warn",
        "is 0.5/255 = 0.002, below 10/255; --epsilons are in 1/255. Did you mean 128?",
    ),
    "no white box": (
        rules.judge_white_box,
        _evidence(*CLEAN, _rows("pgd", "gray_box")),
        "not_run",
        "No attack followed",
    ),
    "only single steps": (rules.judge_white_box, _evidence(*CLEAN, _rows("fgsm")), "warn", "FGSM"),
    "nothing aimed at the mask": (
        rules.judge_adaptive,
        _evidence(*CLEAN, *ATTACKED[:3]),
        "warn",
        "Missing: attacks at the mask (threat model adaptive).",
    ),
    "one surrogate": (
        rules.judge_adaptive,
        _evidence(
            *CLEAN,
            _rows("adaptive_mask_aware", "adaptive"),
            probes=dataclasses.replace(PROBES, surrogates=()),
        ),
        "warn",
        "Missing: both surrogates",
    ),
    "nothing is known of the parts": (
        rules.judge_adaptive,
        _evidence(*CLEAN, *ATTACKED[:3], probes=None),
        "not_run",
        "No attack aimed",
    ),
    "no headline": (rules.judge_worst_case, _evidence(*CLEAN), "not_run", "No attack was run"),
    "nothing that climbs": (
        rules.judge_white_box,
        _evidence(*CLEAN, _rows("fgsm"), _rows("square")),
        "warn",
        "attacked by FGSM, Square; none of them follows the gradient in many steps",
    ),
    "a minimum of means": (
        rules.judge_worst_case,
        _evidence(metrics=_headline(10, COUNT)),
        "fail",
        "right on 8 of 20 images; the main figure says 10 of 20",
    ),
    "an image outside its ball": (
        rules.judge_valid_images,
        _evidence(*CLEAN, _rows("pgd", linf=9.0 / 255.0)),
        "fail",
        "20 have an image beyond its radius",
    ),
    "a norm that is not a number": (
        rules.judge_valid_images,
        _evidence(*CLEAN, _rows("pgd", linf=np.nan)),
        "fail",
        "20 have an image beyond its radius",
    ),
    "a loss that is not a number": (
        rules.judge_valid_images,
        _evidence(*CLEAN, _rows("pgd", loss=np.nan)),
        "fail",
        "20 a loss that is not a number",
    ),
    "the other norm": (
        rules.judge_valid_images,
        _evidence(config=dataclasses.replace(CONFIG, norm="2")),
        "fail",
        "80 have an image beyond its radius",
    ),
    "some doubt": (
        rules.judge_uncertainty,
        _evidence(metrics=_headline(50, 100)),
        "warn",
        "plus or minus 9.6 percentage points",
    ),
    "few images": (rules.judge_uncertainty, _evidence(), "fail", "With 20 images"),
    "no images": (rules.judge_uncertainty, _evidence(*CLEAN), "not_run", "No attack was run"),
    "no seed": (rules.judge_recorded, _evidence(seed=None), "fail", "Not recorded: the seed."),
    "no versions": (rules.judge_recorded, _evidence(packages={}), "fail", "keras, numpy"),
    "a broken defence that was spared": (
        rules.judge_broken_baselines,
        _evidence(*CLEAN, _clean("jpeg"), _rows("pgd", "gray_box", "jpeg")),
        "warn",
        "Known to be broken: jpeg by Athalye et al. 2018. Not attacked in the white box: jpeg.",
    ),
}


@pytest.mark.parametrize(("judge", "evidence", "status", "part"), CASES.values(), ids=CASES)
def test_a_flaw_is_found(judge, evidence, status, part):
    judgement = judge(evidence)
    assert judgement.status == status, judgement.figure
    assert part in judgement.figure


def test_many_images_leave_little_doubt():
    evidence = _evidence(metrics=_headline(500, 1000))
    status, figure = rules.judge_uncertainty(evidence)
    assert (status, "plus or minus 3.1 percentage points" in figure) == ("pass", True)


def test_a_few_dogs_make_a_model_better_than_always_cat():
    predictions = IMBALANCED.copy()
    assert rules.judge_chance(_imbalanced(predictions)).status == "pass"
    predictions[-5:] = 0
    assert rules.judge_chance(_imbalanced(predictions)).status == "pass"
    predictions[-9:] = 0  # Four dogs of thirteen are no evidence.
    assert rules.judge_chance(_imbalanced(predictions)).status == "fail"


def test_the_radius_is_told_as_a_fraction_too():
    config = dataclasses.replace(CONFIG, epsilons=(2.5, 8.0))
    told = "2.5/255 = 0.0098, 8/255 = 0.0314"
    for judge in (rules.judge_threat_model, rules.judge_radius):
        assert told in judge(_evidence(config=config)).figure


@pytest.mark.parametrize(
    ("norm", "radii", "is_doubtful"),
    [
        ("inf", (0.5,), False),
        ("inf", (0.1, 8.0), False),
        ("inf", (0.49,), True),
        ("2", (10.0,), False),
        ("2", (9.0,), True),
    ],
)
def test_only_where_all_radii_are_tiny_another_unit_is_suspected(norm, radii, is_doubtful):
    config = dataclasses.replace(CONFIG, norm=norm, epsilons=radii)
    assert (rules.radius_doubt(config) is not None) == is_doubtful


def test_slow_attacks_may_be_of_the_first_images():
    rows = _rows("hop_skip_jump", "decision_based", count=5)
    assert rules.judge_same_samples(_evidence(*CLEAN, rows)).status == "pass"


@pytest.mark.parametrize("changes", [{"masker": False, "preprocessor": "none"}, {"masker": False}])
def test_only_parts_that_are_there_ask_for_attacks(changes):
    evidence = _evidence(*CLEAN, *ATTACKED[:3], probes=_subject(**changes))
    assert rules.judge_adaptive(evidence).status == "pass"


def test_without_probes_adaptive_attacks_speak_for_themselves():
    assert rules.judge_adaptive(_evidence(probes=None)).status == "pass"


def test_a_model_of_ones_own_needs_no_bare_one():
    evidence = _evidence(_clean("model"), _rows("pgd", defence="model"))
    assert rules.judge_clean_accuracy(evidence).status == "pass"


def test_an_attack_for_the_smallest_perturbation_has_no_ball():
    rows = _rows("cw", epsilon=np.inf, linf=0.9)
    assert rules.judge_valid_images(_evidence(*CLEAN, rows)).status == "pass"


def test_a_broken_defence_that_is_attacked_is_marked():
    evidence = _evidence(*CLEAN, _clean("tvm"), _rows("pgd", defence="tvm"))
    status, figure = rules.judge_broken_baselines(evidence)
    assert (status, figure) == ("pass", "Known to be broken: tvm by Athalye et al. 2018.")
