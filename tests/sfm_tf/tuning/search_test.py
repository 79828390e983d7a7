import dataclasses
import os
import socket
import subprocess
import sys

import keras_tuner
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.tuning.search import (
    Hyperparameters,
    Role,
    build_oracle,
    read_hyperparameters,
    role_of,
    search,
)
from sfm_tf.tuning.settings import TuningConfig

CONFIG = TuningConfig(
    tried_sparsity_weights=(0.1, 0.2, 0.3),
    tried_semantic_weights=(5.0, 20.0),
    tried_reconstruction_weights=(1.0,),
)


@pytest.mark.parametrize(
    ("tuner", "kind"),
    [
        ("grid", "GridSearchOracle"),
        ("random", "RandomSearchOracle"),
        ("bayesian", "BayesianOptimizationOracle"),
        ("hyperband", "HyperbandOracle"),
    ],
)
def test_each_tuner_has_its_oracle(tuner, kind):
    oracle = build_oracle(TuningConfig(tuner=tuner), epochs=9, seed=0)
    assert type(oracle).__name__ == kind
    assert (oracle.objective.name, oracle.objective.direction) == ("clean_and_black_box", "max")
    # Zero would be KerasTuner's word for any.
    assert oracle.seed == 1


@pytest.mark.parametrize(("asked", "limit"), [(0, 6), (4, 4), (100, 6)])
def test_no_more_trials_than_combinations(asked, limit):
    config = TuningConfig(
        max_trials=asked, tried_sparsity_weights=(0.1, 0.2), tried_semantic_weights=(1.0, 2.0, 3.0)
    )
    assert build_oracle(config, epochs=1, seed=0).max_trials == limit


def test_hyperband_is_limited_by_its_epochs_alone_unless_asked_to():
    config = TuningConfig(tuner="hyperband")
    oracle = build_oracle(config, epochs=9, seed=0)
    assert (oracle.max_trials, oracle.max_epochs, oracle.factor) == (None, 9, 3)
    limited = build_oracle(TuningConfig(tuner="hyperband", max_trials=2), epochs=9, seed=0)
    assert limited.max_trials == 2


VALUES = {"sparsity_weight": 0.3, "semantic_weight": 5.0, "reconstruction_weight": 1.0}


@pytest.mark.parametrize("tuner", ["grid", "random"])
def test_values_mean_the_same_in_the_process_that_they_travel_to(tuner):
    config = dataclasses.replace(CONFIG, tuner=tuner)
    space = build_oracle(config, epochs=7, seed=0).get_space()
    space.values = dict(VALUES)
    travelled = keras_tuner.HyperParameters.from_proto(space.to_proto()).values
    assert read_hyperparameters(travelled, config, 7) == Hyperparameters(VALUES, 7)
    # Hyperband says how many epochs.
    assert read_hyperparameters({**VALUES, "tuner/epochs": 3}, config, 7).epochs == 3


def test_the_grid_holds_to_the_list_and_the_others_to_its_range():
    grid, between = (
        build_oracle(dataclasses.replace(CONFIG, tuner=tuner), 9, 0).get_space().space[-1]
        for tuner in ("grid", "bayesian")
    )
    assert (grid.name, grid.values) == ("sparsity_weight", [0.1, 0.2, 0.3])
    assert (between.name, between.min_value, between.max_value) == ("sparsity_weight", 0.1, 0.3)
    assert between.sampling == "log"


def test_a_weight_from_in_between_has_four_digits():
    values = {**VALUES, "sparsity_weight": 0.123456}
    found = read_hyperparameters(values, dataclasses.replace(CONFIG, tuner="random"), 9)
    assert found.weights["sparsity_weight"] == 0.1235
    assert read_hyperparameters(values, CONFIG, 9).weights["sparsity_weight"] == 0.123456


def test_hyperband_needs_a_range():
    config = TuningConfig(tuner="hyperband", tried_sparsity_weights=(0.1,))
    with pytest.raises(
        SfmError, match="hyperband needs at least two different tried_sparsity_weights"
    ):
        build_oracle(config, 9, 0)


PLACE = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": "8000"}


@pytest.mark.parametrize(
    ("environment", "role"),
    [
        ({}, Role.ALONE),
        ({"KERASTUNER_TUNER_ID": "chief"}, Role.ALONE),
        ({**PLACE, "KERASTUNER_TUNER_ID": "chief"}, Role.CHIEF),
        ({**PLACE, "KERASTUNER_TUNER_ID": "worker3"}, Role.WORKER),
    ],
)
def test_the_environment_says_which_part_a_process_has(environment, role):
    assert role_of(environment) is role


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"KERASTUNER_TUNER_ID": ""}, "KERASTUNER_ORACLE_IP is set, but KERASTUNER_TUNER_ID not"),
        ({"KERASTUNER_ORACLE_PORT": ""}, "but KERASTUNER_ORACLE_PORT not; set all three"),
        ({"KERASTUNER_ORACLE_PORT": "http"}, "Invalid KERASTUNER_ORACLE_PORT 'http'; expected a"),
        ({"KERASTUNER_ORACLE_PORT": "65536"}, "expected a number from 1 to 65535"),
    ],
)
def test_half_an_address_is_refused(changes, message):
    with pytest.raises(SfmError, match=message):
        role_of({**PLACE, "KERASTUNER_TUNER_ID": "chief", **changes})


EPOCHS = 9


def run_search(trials, seed=0, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return search(config, EPOCHS, seed, Role.ALONE, trials.run)


class FakeTrials:
    """Stands in for trials: answers at once, best at (0.2, 20), and remembers what it was asked."""

    def __init__(self, fails=(), stops_at=None):
        self.asked, self._fails, self._stops_at = [], fails, stops_at

    def run(self, hyperparameters):
        if len(self.asked) == self._stops_at:
            raise KeyboardInterrupt
        self.asked.append(hyperparameters)
        sparsity, semantic = (
            hyperparameters.weights[name] for name in ("sparsity_weight", "semantic_weight")
        )
        failure = "mask_loss became nan." if sparsity in self._fails else ""
        clean = 1.0 - abs(sparsity - 0.2) - abs(semantic - 20.0) / 100.0
        return {"clean": clean, "black_box": clean / 2, "failure": failure}


def pairs(tried):
    weights = [hyperparameters.weights for hyperparameters in tried]
    return [(each["sparsity_weight"], each["semantic_weight"]) for each in weights]


def test_the_grid_is_traversed_once_the_sparsity_weight_first():
    trials = FakeTrials()
    tried = run_search(trials)
    expected = [(sparsity, semantic) for semantic in (5.0, 20.0) for sparsity in (0.1, 0.2, 0.3)]
    assert pairs(tried) == expected
    assert trials.asked == tried
    assert {hyperparameters.epochs for hyperparameters in tried} == {EPOCHS}


def test_a_search_that_is_stopped_and_called_again_asks_the_same():
    stopped, again = FakeTrials(stops_at=2), FakeTrials()
    for tuner in ("random", "bayesian"):
        with pytest.raises(KeyboardInterrupt):
            run_search(stopped, 3, tuner=tuner)
        run_search(again, 3, tuner=tuner)
        assert again.asked[:2] == stopped.asked
        stopped.asked.clear()
        again.asked.clear()


@pytest.mark.parametrize("tuner", ["random", "bayesian"])
def test_a_limit_holds_and_nothing_is_listed_twice(tuner):
    tried = run_search(FakeTrials(), tuner=tuner, max_trials=4)
    assert 1 < len(tried) <= 4
    assert len(set(pairs(tried))) == len(tried)


def test_hyperband_trains_the_better_ones_for_longer():
    trials = FakeTrials()
    tried = run_search(trials, tuner="hyperband")
    # Its first bracket: nine trials of one epoch, three of three, one of nine.
    rounds = [[a for a in trials.asked[:13] if a.epochs == epochs] for epochs in (1, 3, 9)]
    assert [len(each) for each in rounds] == [9, 3, 1]
    scores = [[trials.run(each)["clean"] for each in each_round] for each_round in rounds]
    assert sorted(scores[0])[-3:] == sorted(scores[1])
    assert scores[2] == [max(scores[1])]
    assert {each.epochs for each in tried} == {1, 3, 9}


def test_a_trial_that_fails_does_not_end_the_search():
    trials = FakeTrials(fails=(0.1, 0.2))
    assert len(run_search(trials)) == 6


def test_a_defect_ends_the_search_as_it_is():
    def run(hyperparameters):
        raise SfmError("Split 'train' has 3 records; expected 4.")

    with pytest.raises(SfmError, match="^Split 'train' has 3 records"):
        search(CONFIG, EPOCHS, 0, Role.ALONE, run)


_CHIEF = """
import sys
from sfm_tf.tuning.search import Role
from sfm_tf.tuning.search import search
from sfm_tf.tuning.settings import TuningConfig

def run(hyperparameters):
    raise AssertionError("a chief does no trial")

config = TuningConfig(tried_sparsity_weights=(0.1, 0.3), tried_semantic_weights=(20.0,))
tried = search(config, 9, 0, Role.CHIEF, run)
print([each.weights["sparsity_weight"] for each in tried])
"""


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_a_worker_does_what_a_chief_in_another_process_hands_out(monkeypatch):
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": _free_port()}
    environment = {**os.environ, **address, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _CHIEF]
    environment["KERASTUNER_TUNER_ID"] = "chief"
    two = TuningConfig(tried_sparsity_weights=(0.1, 0.3), tried_semantic_weights=(20.0,))
    trials = FakeTrials()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as chief:
        try:
            for name, value in {**address, "KERASTUNER_TUNER_ID": "worker0"}.items():
                monkeypatch.setenv(name, value)
            assert search(two, 9, 0, Role.WORKER, trials.run) == []
            answer, _ = chief.communicate(timeout=50)
        finally:
            chief.kill()
    weights = {"semantic_weight": 20.0, "reconstruction_weight": 1.0}
    assert trials.asked == [
        Hyperparameters({**weights, "sparsity_weight": sparsity}, 9) for sparsity in (0.1, 0.3)
    ]
    assert (chief.returncode, answer) == (0, "[0.1, 0.3]\n")


def test_an_address_in_use_is_said_in_words(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
        monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(other.getsockname()[1]))
        monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
        with pytest.raises(SfmError, match="The chief cannot serve the search .*free the port"):
            search(CONFIG, EPOCHS, 0, Role.CHIEF, FakeTrials().run)
