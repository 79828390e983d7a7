import dataclasses
import json
import math

import pytest

from sfm_tf import testing
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.config import ModelConfig
from sfm_tf.training.loading import load_defended_model
from sfm_tf.training_config import TrainingConfig
from sfm_tf.tuning.trial import Trial, comparable, resumed_trial

CONFIG = TrainingConfig(
    batch_size=42,
    pretraining_epochs=0,
    epochs=1,
    augmentation="none",
    sparsity_weight=0.2,
    semantic_weight=20.0,
    reconstruction_weight=2.0,
)
SCORES = {"clean": 0.5, "black_box": 0.25, "gray_box": None, "examples": 16, "epsilon": 8.0}


class FixedMeasurement:
    """Stands in for a measurement: keeps the models that it is asked of."""

    def __init__(self):
        self.asked, self.source = [], None

    def scores(self, defended, folder):
        folder.mkdir()
        self.asked.append(defended)
        self.source = defended.classifier
        return SCORES


@pytest.fixture(name="trial", scope="module")
def _trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return Trial(
        records=testing.make_records(RunDirectory(folder)).folder,
        model=ModelConfig(classifier_width=4, masker_width=4, masker_depth=1),
        config=CONFIG,
        seed=0,
        measurement=FixedMeasurement(),
        folder=folder / "trial",
        progress=lambda *figures: None,
    )


def test_a_trial_is_trained_scored_and_never_done_again(trial):
    assert resumed_trial(trial.folder) is None
    result = trial.run(keep_models=True)
    names = ("sparsity_weight", "semantic_weight", "reconstruction_weight", "epochs")
    assert [result[name] for name in names] == [0.2, 20.0, 2.0, 1]
    assert result["rho"] == pytest.approx(0.2 * math.sqrt(64) / 2.0)
    assert {name: result[name] for name in SCORES} == SCORES
    assert (result["failure"], result["collapse"]) == ("", "")
    (epoch,) = json.loads((trial.folder / "history.json").read_text())["defence"]
    assert result["mask_mean"] == epoch["validation"]["mask_mean"]
    assert result["mask_spread"] == epoch["validation"]["mask_spread"]
    (scored,) = trial.measurement.asked
    kept = load_defended_model(trial.folder)
    for one, other in zip(scored.get_weights(), kept.get_weights(), strict=True):
        assert (one == other).all()
    left = {path.name for path in trial.folder.iterdir()}
    assert left.isdisjoint({"checkpoint", "adversarial"})

    def refuse(*figures):
        raise AssertionError("nothing is left to train")

    assert dataclasses.replace(trial, progress=refuse).run() == result
    assert resumed_trial(trial.folder) == result


def test_a_loss_that_is_no_number_is_an_answer(trial, tmp_path):
    config = dataclasses.replace(
        CONFIG,
        batch_size=8,
        pretraining_epochs=1,
        classifier_learning_rate=1e30,
        reconstruction_weight=0.0,
    )
    result = dataclasses.replace(trial, config=config, folder=tmp_path / "failed").run()
    assert "lower classifier_learning_rate" in result["failure"]
    assert (result["clean"], result["mask_mean"], result["rho"]) == (None, None, None)
    assert resumed_trial(tmp_path / "failed") == result


def test_training_on_adversarial_images_tells_no_trials_apart():
    other = dataclasses.replace(
        CONFIG, adversarial_training="trades", adversarial_epochs=3, trades_beta=1.0
    )
    assert comparable(other) == comparable(CONFIG) == CONFIG
    assert comparable(dataclasses.replace(CONFIG, epochs=2)) != CONFIG


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
