import dataclasses
import json

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.settings import ModelConfig
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.tuning.search import Hyperparameters, Role
from sfm_tf.tuning.settings import TuningConfig
from sfm_tf.tuning.trials import Scorer, Trial, scoring_settings
from sfm_tf.tuning.tuning import Tuning
from tests.small_models import small_models


@pytest.fixture(scope="module", autouse=True)
def _small_models():
    with small_models():
        yield


class Killed(BaseException):
    """Ends a search as a signal would: nothing in it catches this."""


class Steps:
    """Counts the training steps of each phase, and kills the search before one of them."""

    def __init__(self, kills_at=""):
        self.phases, self._kills_at = [], kills_at

    def update(self, phase, *figures):
        if self._kills_at and self._kills_at in phase:
            raise Killed
        self.phases.append(phase)

    def of(self, word):
        return sum(word in phase for phase in self.phases)


@pytest.fixture(name="tuning", scope="module")
def _tuning(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return Tuning(
        records=records.folder,
        records_digest="the records",
        model=ModelConfig(classifier_width=4, masker_width=4, masker_depth=1),
        training=TrainingConfig(
            batch_size=42, pretraining_epochs=0, epochs=1, source_epochs=1, augmentation="none"
        ),
        tuning=TuningConfig(tried_sparsity_weights=(0.1, 0.3), tried_semantic_weights=(20.0,)),
        scoring=scoring_settings(EvaluationConfig(iterations=1), gray_box=False),
        seed=0,
        store=folder / "trials",
        progress=Steps().update,
    )


@pytest.fixture(name="folders")
def _folders(monkeypatch):
    """The folders of the trials that a search asks for, none of which is trained or scored."""
    folders = []

    def run(self):
        folders.append(self.folder)
        return {"clean": 0.5, "black_box": 0.5, "failure": ""}

    scorer = Scorer(**dict.fromkeys(field.name for field in dataclasses.fields(Scorer)))
    monkeypatch.setattr(Tuning, "_scorer", lambda self: scorer)
    monkeypatch.setattr(Trial, "run", run)
    return folders


def test_a_killed_search_goes_on_where_it_was_and_writes_what_it_found(tuning, tmp_path):
    steps = Steps(kills_at="sparsity 0.3: alternation")
    with pytest.raises(Killed):
        dataclasses.replace(tuning, progress=steps.update).run(Role.ALONE)
    assert (steps.of("source"), steps.of("sparsity 0.1: alternation")) == (2, 2)
    steps = Steps()
    tuning = dataclasses.replace(tuning, progress=steps.update)
    tried = tuning.run(Role.ALONE)
    assert steps.of("source") == steps.of("sparsity 0.1") == 0
    assert steps.of("sparsity 0.3: alternation") == 2
    best = tuning.write(tried, tmp_path)
    stored = json.loads((tmp_path / "trials.json").read_text())
    assert [trial["sparsity_weight"] for trial in stored["trials"]] == [0.1, 0.3]
    assert {trial["examples"] for trial in stored["trials"]} == {16}
    assert set(stored["source"]) == {"clean", "attacked"}
    assert json.loads((tmp_path / "best.json").read_text()) == best
    assert best["values"]["sparsity_weight"] in (0.1, 0.3)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"records_digest": "others"},
        {"model": ModelConfig(classifier_width=8)},
        {"training": TrainingConfig(masker_learning_rate=0.5)},
        {"tuning": TuningConfig(tuning_examples=7)},
        {"scoring": EvaluationConfig(epsilons=(4.0,))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_trial_depends_on_tells_it_from_others(tuning, changes, folders):
    for each in (tuning, dataclasses.replace(tuning, **changes)):
        each.run(Role.ALONE)
    assert len(folders) > 2
    assert set(folders[:2]).isdisjoint(folders[2:])


def test_an_enlarged_grid_keeps_the_trials_that_were_done(tuning, folders):
    larger = dataclasses.replace(tuning.tuning, tried_sparsity_weights=(0.1, 0.2, 0.3))
    tuning.run(Role.ALONE)
    dataclasses.replace(tuning, tuning=larger).run(Role.ALONE)
    assert len(folders) == 5
    assert set(folders[:2]) < set(folders[2:])


def test_a_chief_that_does_not_find_its_workers_trials_says_why(tuning, tmp_path):
    weights = {"sparsity_weight": 0.5, "semantic_weight": 20.0, "reconstruction_weight": 1.0}
    elsewhere = dataclasses.replace(tuning, store=tmp_path / "elsewhere")
    with pytest.raises(SfmError, match="No worker wrote its trial into .*elsewhere.*the chief's"):
        elsewhere.write([Hyperparameters(weights, 1)], tmp_path)
