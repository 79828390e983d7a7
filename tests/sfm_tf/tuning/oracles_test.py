import dataclasses

import keras_tuner
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.tuning.oracles import Assignment, build_oracle, read_assignment
from sfm_tf.tuning_config import TuningConfig

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


@pytest.mark.parametrize("tuner", ["grid", "random"])
def test_values_mean_the_same_in_the_process_that_they_travel_to(tuner):
    config = dataclasses.replace(CONFIG, tuner=tuner)
    space = build_oracle(config, epochs=7, seed=0).get_space()
    space.values = {"sparsity_weight": 0.3, "semantic_weight": 5.0, "reconstruction_weight": 1.0}
    travelled = keras_tuner.HyperParameters.from_proto(space.to_proto()).values
    assert read_assignment(travelled, config, 7) == Assignment(space.values, 7)


def test_the_grid_holds_to_the_list_and_the_others_to_its_range():
    grid, between = (
        build_oracle(dataclasses.replace(CONFIG, tuner=tuner), 9, 0).get_space().space[-1]
        for tuner in ("grid", "bayesian")
    )
    assert (grid.name, grid.values) == ("sparsity_weight", [0.1, 0.2, 0.3])
    assert (between.name, between.min_value, between.max_value) == ("sparsity_weight", 0.1, 0.3)
    assert between.sampling == "log"


def test_a_weight_from_in_between_has_four_digits():
    values = {"sparsity_weight": 0.123456, "semantic_weight": 5.0, "reconstruction_weight": 1.0}
    found = read_assignment(values, dataclasses.replace(CONFIG, tuner="random"), 9)
    assert found.weights["sparsity_weight"] == 0.1235
    assert read_assignment(values, CONFIG, 9).weights["sparsity_weight"] == 0.123456


def test_hyperband_needs_a_range():
    config = TuningConfig(tuner="hyperband", tried_sparsity_weights=(0.1,))
    with pytest.raises(SfmError, match="A single tried_sparsity_weights leaves hyperband too"):
        build_oracle(config, 9, 0)


def test_hyperband_says_how_many_epochs():
    values = {"sparsity_weight": 0.1, "semantic_weight": 5.0, "reconstruction_weight": 1.0}
    assert read_assignment({**values, "tuner/epochs": 3}, CONFIG, 9).epochs == 3


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
