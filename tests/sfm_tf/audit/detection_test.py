import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from sfm_tf.audit.detection import (
    AttackedScores,
    detection_summary,
    measure_detection,
    roc_curve,
)
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.attack_catalogue import AWARE_ATTACK
from sfm_tf.evaluation.job import Detector, guarded_model, load_job
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.significance import wilson_interval
from sfm_tf.evaluation.subjects import ModelFolders
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split


def _scores(levels, seed=0):
    """Many ties where there are few levels."""
    random = np.random.default_rng(seed)
    clean = np.floor(levels * random.beta(1, 4, 57)) / levels
    adversarial = np.floor(levels * random.beta(2, 3, 83)) / levels
    return clean.astype(np.float32), adversarial.astype(np.float32)


def test_the_curve_by_hand():
    false_positives, true_positives = roc_curve(np.array([0.1, 0.5]), np.array([0.5, 0.9, 0.9]))
    assert false_positives.tolist() == [0, 0, 0.5, 1]
    assert true_positives.tolist() == [0, 2 / 3, 1, 1]


@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
def test_the_area_is_the_chance_that_an_adversarial_image_scores_higher(levels):
    clean, adversarial = _scores(levels)
    everywhere = np.ones(len(adversarial), bool)
    attack = _attack(scores=adversarial, correct=~everywhere, correct_when_clean=everywhere)
    (entry,) = detection_summary(VALIDATION, clean, [attack])["attacked"]
    pairs = len(clean) * len(adversarial)
    assert entry["auc"] == pytest.approx(mannwhitneyu(adversarial, clean).statistic / pairs)


VALIDATION = np.arange(100) / 100.0
CLEAN = np.array([0.2, 0.945, 0.3, 0.95])


def _attack(correct=(False, False, True, False), **keys):
    values = {
        "threat_model": "white_box",
        "attack": "pgd",
        "epsilon": 8.0,
        "scores": np.array([1.5, 0.1, 1.0, 1.2], np.float32),
        "correct": np.array(correct),
        "correct_when_clean": np.array([True, True, True, False]),
    }
    return AttackedScores(**{**values, **keys})


def test_the_threshold_is_of_validation_images_and_the_rate_of_the_evaluated_ones():
    summary = detection_summary(VALIDATION, CLEAN, [])
    assert summary["false_positive_rate"] == 0.05
    assert summary["threshold"] == 0.94
    assert (summary["validation"]["flagged"], summary["validation"]["examples"]) == (5, 100)
    low, high = wilson_interval(2, 4)
    assert summary["clean"] == {
        "examples": 4,
        "flagged": 2,
        "rate": 0.5,
        "rate_low": low,
        "rate_high": high,
    }
    assert summary["attacked"] == []


def test_all_images_and_those_that_became_wrong_are_told_apart():
    (entry,) = detection_summary(VALIDATION, CLEAN, [_attack()])["attacked"]
    assert (entry["threat_model"], entry["attack"], entry["epsilon"]) == ("white_box", "pgd", 8.0)
    assert (entry["all"]["examples"], entry["all"]["flagged"]) == (4, 3)
    # The third image is still right, the fourth one was wrong before.
    assert (entry["successful"]["examples"], entry["successful"]["flagged"]) == (2, 1)
    low, high = wilson_interval(1, 2)
    assert (entry["successful"]["rate_low"], entry["successful"]["rate_high"]) == (low, high)
    # 1.5 is above all four clean images, 0.1 above none.
    assert entry["auc"] == 0.5


def test_a_score_at_the_threshold_is_not_flagged():
    attack = _attack(scores=np.array([0.94, 0.94, 0.9401, 0.9399]))
    (entry,) = detection_summary(VALIDATION, CLEAN, [attack])["attacked"]
    assert entry["all"]["flagged"] == 1


def test_an_attack_without_success_has_no_curve():
    summary = detection_summary(VALIDATION, CLEAN, [_attack(correct=(True, True, True, False))])
    (entry,) = summary["attacked"]
    assert entry["auc"] is None
    assert entry["curve"] is None
    assert entry["successful"] == {
        "examples": 0,
        "flagged": 0,
        "rate": None,
        "rate_low": None,
        "rate_high": None,
    }


def test_points_of_the_curve_are_the_best_within_their_false_positive_rate():
    clean, successful = _scores(20)
    everywhere = np.ones(len(successful), bool)
    attack = _attack(scores=successful, correct=~everywhere, correct_when_clean=everywhere)
    (entry,) = detection_summary(VALIDATION, clean, [attack])["attacked"]
    curve = entry["curve"]
    assert curve["false_positive_rates"] == [place / 100 for place in range(101)]
    thresholds = [-1.0, *clean, *successful]
    for allowed, rate in zip(*curve.values(), strict=True):
        allowing = [t for t in thresholds if np.mean(clean > t) <= allowed]
        assert rate == max(np.mean(successful > t) for t in allowing)


def test_a_summary_survives_json():
    attacks = [_attack(), _attack(epsilon=None, attack="cw"), _attack(correct=(True,) * 4)]
    summary = detection_summary(VALIDATION.astype(np.float32), CLEAN, attacks, 0.1)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    threshold = json.loads(json.dumps(summary))["threshold"]
    assert np.sum(VALIDATION.astype(np.float32) > threshold) == 10


def test_attacks_of_fewer_images_are_counted_by_their_own_number():
    few = _attack(
        **{
            name: getattr(_attack(), name)[:2]
            for name in ("scores", "correct", "correct_when_clean")
        }
    )
    (entry,) = detection_summary(VALIDATION, CLEAN, [few])["attacked"]
    assert (entry["all"]["examples"], entry["successful"]["examples"]) == (2, 2)


def test_bad_input_is_refused():
    with pytest.raises(SfmError, match="4 scores of pgd but 3 correct, 4 correct_when_clean"):
        _attack(correct=(True, False, True))
    with pytest.raises(SfmError, match=r"Scores of shape \(0,\)"):
        detection_summary(VALIDATION, np.array([]), [])
    with pytest.raises(SfmError, match="Scores are NaN or infinite, first in image 1"):
        roc_curve(np.array([0.0, np.nan]), CLEAN)
    with pytest.raises(SfmError, match="Invalid false_positive_rate 1.5"):
        detection_summary(VALIDATION, CLEAN, [], 1.5)


CONFIG = EvaluationConfig(num_examples=12, attacks=("fgsm",), epsilons=(16.0,), iterations=2)


@pytest.fixture(name="evaluated", scope="module")
def _evaluated(records, models, new_run):
    store = new_run("evaluate").latest("evaluate").folder / "adversarial"
    folders = ModelFolders(models.folder)
    return load_job(records.folder, folders, CONFIG, ComparedConfig(), 0, store, lambda *_: None)


@pytest.fixture(name="detector", scope="module")
def _detector(records):
    validation_images, _ = load_split(records.folder, "validation", read_schema(records.folder))
    return Detector("bit_depth_3+median_2", validation_images)


def test_each_stored_set_of_the_bare_classifier_is_scored_once_and_the_aware_attack(
    evaluated, detector
):
    summary = measure_detection(detector, evaluated, evaluated.store)
    attacked = [(entry["threat_model"], entry["attack"]) for entry in summary["attacked"]]
    # Gray and white box of a bare classifier share their images.
    assert attacked == [("black_box", "fgsm"), ("gray_box", "fgsm"), ("adaptive", AWARE_ATTACK)]
    assert {entry["all"]["examples"] for entry in summary["attacked"]} == {12}
    assert summary["clean"]["examples"] == 12
    assert summary["validation"]["examples"] == len(detector.validation_images)
    assert summary["validation"]["rate"] <= 0.05
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_bare_classifier_is_what_is_guarded(evaluated, detector):
    models = evaluated.models
    assert guarded_model(models) == "undefended"
    assert guarded_model({"model": models["undefended"]}) == "model"
    only_masked = {"sfm": models["sfm"]}
    assert guarded_model(only_masked) is None
    job = dataclasses.replace(evaluated, models=only_masked)
    with pytest.raises(SfmError, match="add undefended to --defences"):
        measure_detection(detector, job, job.store)


def test_a_set_that_is_gone_is_told(evaluated, detector, tmp_path):
    empty = AdversarialStore(tmp_path)
    empty.write_index(evaluated.store.read_index())
    with pytest.raises(SfmError, match="is gone; run the evaluation with --force"):
        measure_detection(detector, evaluated, empty)
