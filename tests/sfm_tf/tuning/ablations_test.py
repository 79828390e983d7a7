import dataclasses
import json

import pytest

from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.settings import ModelConfig
from sfm_tf.training.model_files import load_source_model
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.tuning import ablations as module
from sfm_tf.tuning.ablations import AblationStudy, read_ablations
from sfm_tf.tuning.settings import ABLATIONS, AblationConfig
from sfm_tf.tuning.trials import Scorer, Trial, scoring_settings

TRAINING = TrainingConfig(epochs=7, source_epochs=1, batch_size=42, adversarial_training="pgd")


@pytest.fixture(name="study", scope="module")
def _study(records, models):
    return AblationStudy(
        records=records.folder,
        model=ModelConfig(classifier_width=4, masker_width=4, masker_depth=1),
        training=TRAINING,
        ablation=AblationConfig(ablation_epochs=2),
        scoring=scoring_settings(EvaluationConfig(iterations=1), gray_box=True),
        seed=5,
        source=load_source_model(models.folder),
        progress=lambda *figures: None,
    )


@pytest.fixture(name="trials")
def _trials(monkeypatch):
    """The trials that a study asks for, none of which is trained or attacked."""
    asked = []

    def source_scores(self):
        assert asked == [], "the images of the black box are there before the first trial"
        self.folder.mkdir()

    def run(self, *, keep_models):
        asked.append((self, keep_models))
        return {"clean": len(asked) / 10, "failure": ""}

    monkeypatch.setattr(Scorer, "source_scores", source_scores)
    monkeypatch.setattr(Trial, "run", run)
    return asked


def test_each_training_lacks_one_thing_and_shares_the_rest(study, trials, tmp_path):
    study.run(tmp_path)
    complete = dataclasses.replace(TRAINING, epochs=2, adversarial_training="none")
    assert [trial.config for trial, _ in trials] == [
        complete,
        dataclasses.replace(complete, semantic_weight=0.0),
        dataclasses.replace(complete, reconstruction_weight=0.0),
        dataclasses.replace(complete, semantic_loss="cross_entropy"),
        dataclasses.replace(complete, freeze_classifier=True),
        dataclasses.replace(complete, preprocess_training=False),
    ]
    assert [trial.folder for trial, _ in trials] == [
        tmp_path / name for name in ("complete", *ABLATIONS)
    ]
    assert all(keep_models for _, keep_models in trials)
    assert {trial.seed for trial, _ in trials} == {5}
    assert {id(trial.scorer.source) for trial, _ in trials} == {id(study.source)}
    assert {len(trial.scorer.labels) for trial, _ in trials} == {16}


def test_what_was_found_is_written_and_read_back(study, trials, tmp_path):
    config = AblationConfig(ablations=("frozen_target",), ablation_examples=9)
    results = dataclasses.replace(study, ablation=config).run(tmp_path)
    assert results == [
        {"name": "complete", "words": "complete", "overrides": {}, "clean": 0.1, "failure": ""},
        {
            "name": "frozen_target",
            "words": "frozen target",
            "overrides": {"freeze_classifier": True},
            "clean": 0.2,
            "failure": "",
        },
    ]
    assert read_ablations(tmp_path) == results
    assert json.loads((tmp_path / "ablations.json").read_text()) == results
    assert [trial.config.epochs for trial, _ in trials] == [7, 7]
    assert len(trials[0][0].scorer.labels) == 9
    assert not (tmp_path / "adversarial").exists()


def test_a_source_model_is_trained_where_there_is_none(study, trials, tmp_path, monkeypatch):
    asked = []

    def train_source_model(session):
        asked.append((session.folder, session.config.source_epochs))
        return study.source

    monkeypatch.setattr(module, "train_source_model", train_source_model)
    dataclasses.replace(study, source=None).run(tmp_path)
    assert asked == [(tmp_path / "source", 1)]
