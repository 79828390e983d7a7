import dataclasses
import json
import math
import threading

import keras
import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.attack_building import build_attack
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.threat_models import ThreatModel, attacked_model
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.settings import ModelConfig
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.training.model_files import load_defended_model
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.training import TrainingSession
from sfm_tf.tuning.trials import (
    Scorer,
    Trial,
    exclusive_lock,
    read_trial,
    scoring_settings,
    train_source_model,
    without_adversarial_settings,
)
from tests.small_models import small_models


@pytest.fixture(scope="module", autouse=True)
def _small_models():
    with small_models():
        yield


EVALUATION = EvaluationConfig(
    epsilons=(64.0, 48.0), iterations=2, attacks=("cw", "fgsm"), norm="2", min_clean_accuracy=0.9
)
COUNT = 40


def _linear(seed):
    """A linear classifier that an even image tells nothing."""
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3, use_bias=False)]
    )
    kernel = np.random.default_rng(seed).normal(size=(16, 3))
    model.set_weights([kernel - kernel.mean(axis=0)])
    return model


@pytest.fixture(name="measured", scope="module")
def _measured(tmp_path_factory):
    """A linear model behind a mask, a scorer of it, and a folder."""
    initializer = keras.initializers.RandomNormal(stddev=0.3, seed=2)
    convolution = keras.layers.Conv2D(
        1, 3, padding="same", activation="sigmoid", kernel_initializer=initializer
    )
    masker = keras.Sequential([keras.Input((4, 4, 1)), convolution])
    defended = DefendedModel(_linear(0), masker, parse_preprocessor("bit_depth_4", "identity"))
    images = np.random.default_rng(0).random((COUNT, 4, 4, 1)).astype(np.float32)
    folder = tmp_path_factory.mktemp("measured")
    source = _linear(1)
    # Alike enough for its adversarial images to fool the other, too.
    pairs = zip(defended.classifier.get_weights(), source.get_weights(), strict=True)
    source.set_weights([target + 0.5 * own for target, own in pairs])
    scorer = Scorer(
        source=source,
        images=images,
        labels=np.argmax(defended.predict(images, verbose=0), axis=1),
        config=scoring_settings(EVALUATION, gray_box=True),
        seed=3,
        folder=folder / "black",
        progress=lambda phrase, done, total: None,
    )
    return scorer, defended, folder


def test_the_paper_chooses_by_pgd_at_its_smallest_radius_in_the_linf_norm():
    config = scoring_settings(EVALUATION, gray_box=True)
    assert (config.attacks, config.epsilons, config.norm) == (("pgd",), (48.0,), "inf")
    assert (config.iterations, config.threat_models) == (2, ("black_box", "gray_box"))
    # Changes that it does not read make no other scorer.
    other = dataclasses.replace(EVALUATION, epsilons=(48.0,), attacks=("fgsm",), cw_searches=9)
    assert scoring_settings(other, gray_box=True) == config


def test_boxes_are_attacked_through_their_models_and_scored_on_the_defended_one(measured):
    scorer, defended, root = measured
    scores = scorer.scores(defended, root / "gray")
    assert (scores["examples"], scores["epsilon"]) == (COUNT, 48.0)
    samples = check_samples(scorer.images, scorer.labels, defended.classifier)

    def accuracy(images):
        return np.mean(np.argmax(defended.predict(images, verbose=0), axis=1) == samples.labels)

    assert scores["clean"] == accuracy(samples.images) == 1.0
    assert scores["gray_box"] < scores["black_box"] < 1.0
    for threat_model in (ThreatModel.BLACK_BOX, ThreatModel.GRAY_BOX):
        target = attacked_model(threat_model, defended, scorer.source)
        estimator = samples.wrap(target, 128)
        attack = build_attack("pgd", estimator, 48.0 / 255.0, scorer.config, 3)
        attack.set_params(step_size=24.0 / 255.0)  # Two steps have to cross the ball.
        images = attack.generate(samples.images, samples.labels)
        assert scores[threat_model.value] == pytest.approx(accuracy(images)), threat_model


def test_the_images_of_the_black_box_are_made_once_and_none_of_a_gray_box_not_asked_for(measured):
    scorer, defended, root = measured
    config = scoring_settings(EVALUATION, gray_box=False)
    once = dataclasses.replace(scorer, folder=root / "once", config=config)
    assert set(once.source_scores()) == {"clean", "attacked"}
    (stored,) = once.folder.glob("pgd-*.tfrecord")
    modified = stored.stat().st_mtime_ns
    assert once.scores(defended, root / "unused")["gray_box"] is None
    assert [path.stat().st_mtime_ns for path in once.folder.glob("*.tfrecord")] == [modified]
    assert not (root / "unused").exists()


MODEL = ModelConfig(classifier_width=4, masker_width=4, masker_depth=1)
CONFIG = TrainingConfig(batch_size=42, source_epochs=1, augmentation="none")


def test_the_source_is_trained_once_and_read_back(records, tmp_path):
    steps = []

    def progress(stage, done, total, metrics):
        steps.append((stage, done, total))

    def trained():
        session = TrainingSession.open(
            records.folder, MODEL, CONFIG, 0, tmp_path / "source", progress
        )
        return train_source_model(session), session

    first, session = trained()
    assert steps == [("source", 1, 2), ("source", 2, 2)]
    assert not (tmp_path / "source" / "checkpoint").exists()
    untrained = session.factory.source().classifier
    images = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
    again, _ = trained()
    assert len(steps) == 2
    np.testing.assert_array_equal(first(images), again(images))
    assert np.abs(np.asarray(untrained(images)) - np.asarray(first(images))).max() > 0.0


def test_a_damaged_source_is_said(records, tmp_path):
    session = TrainingSession.open(
        records.folder, MODEL, CONFIG, 0, tmp_path / "source", lambda *figures: None
    )
    (tmp_path / "source" / "source.keras").write_bytes(b"half a file")
    with pytest.raises(SfmError, match="source.keras"):
        train_source_model(session)


def test_one_waits_for_the_other(tmp_path):
    order, entered = [], threading.Event()

    def second():
        entered.wait()
        with exclusive_lock(tmp_path / "new"):
            order.append("second")

    with exclusive_lock(tmp_path / "new"):
        thread = threading.Thread(target=second)
        thread.start()
        entered.set()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


TRIAL_CONFIG = TrainingConfig(
    batch_size=42,
    pretraining_epochs=0,
    epochs=1,
    augmentation="none",
    sparsity_weight=0.2,
    semantic_weight=20.0,
    reconstruction_weight=2.0,
)
SCORES = {"clean": 0.5, "black_box": 0.25, "gray_box": None, "examples": 16, "epsilon": 8.0}


class FixedScorer:
    """Stands in for a scorer: keeps the models that it is asked of."""

    def __init__(self):
        self.asked, self.source = [], None

    def scores(self, defended, folder):
        folder.mkdir()
        self.asked.append(defended)
        self.source = defended.classifier
        return SCORES


@pytest.fixture(name="trial", scope="module")
def _trial(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return Trial(
        records=records.folder,
        model=ModelConfig(classifier_width=4, masker_width=4, masker_depth=1),
        config=TRIAL_CONFIG,
        seed=0,
        scorer=FixedScorer(),
        folder=folder / "trial",
        progress=lambda *figures: None,
    )


def test_a_trial_is_trained_scored_and_never_done_again(trial):
    assert read_trial(trial.folder) is None
    result = trial.run(keep_models=True)
    names = ("sparsity_weight", "semantic_weight", "reconstruction_weight", "epochs")
    assert [result[name] for name in names] == [0.2, 20.0, 2.0, 1]
    assert result["rho"] == pytest.approx(0.2 * math.sqrt(64) / 2.0)
    assert {name: result[name] for name in SCORES} == SCORES
    assert (result["failure"], result["collapse"]) == ("", "")
    (epoch,) = json.loads((trial.folder / "history.json").read_text())["defence"]
    assert result["mask_mean"] == epoch["validation"]["mask_mean"]
    assert result["mask_spread"] == epoch["validation"]["mask_spread"]
    (scored,) = trial.scorer.asked
    kept = load_defended_model(trial.folder)
    for one, other in zip(scored.get_weights(), kept.get_weights(), strict=True):
        assert (one == other).all()
    left = {path.name for path in trial.folder.iterdir()}
    assert left.isdisjoint({"checkpoint", "adversarial"})

    def refuse(*figures):
        raise AssertionError("nothing is left to train")

    assert dataclasses.replace(trial, progress=refuse).run() == result
    assert read_trial(trial.folder) == result


def test_a_loss_that_is_no_number_is_an_answer(trial, tmp_path):
    config = dataclasses.replace(
        TRIAL_CONFIG,
        batch_size=8,
        pretraining_epochs=1,
        classifier_learning_rate=1e30,
        reconstruction_weight=0.0,
    )
    result = dataclasses.replace(trial, config=config, folder=tmp_path / "failed").run()
    assert "lower classifier_learning_rate" in result["failure"]
    assert (result["clean"], result["mask_mean"], result["rho"]) == (None, None, None)
    assert read_trial(tmp_path / "failed") == result


def test_training_on_adversarial_images_tells_no_trials_apart():
    other = dataclasses.replace(
        TRIAL_CONFIG, adversarial_training="trades", adversarial_epochs=3, trades_beta=1.0
    )
    assert (
        without_adversarial_settings(other)
        == without_adversarial_settings(TRIAL_CONFIG)
        == TRIAL_CONFIG
    )
    assert without_adversarial_settings(dataclasses.replace(TRIAL_CONFIG, epochs=2)) != TRIAL_CONFIG
