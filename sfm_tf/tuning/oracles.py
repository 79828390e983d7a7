"""KerasTuner's oracles, which say what weights to try next, made from this library's settings."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras_tuner
from keras_tuner import oracles

from sfm_tf.errors import SfmError
from sfm_tf.tuning_config import TuningConfig

OBJECTIVE = "clean_and_black_box"
"""Name of what is made largest: clean accuracy plus that in the black box (section 6.2)."""

_EPOCHS = "tuner/epochs"  # What Hyperband calls it.
_FACTOR = 3
_CONTINUOUS = "sparsity_weight"


class Assignment(NamedTuple):
    """What a trial tries: weights by their fields of `TrainingConfig`, and alternating epochs."""

    weights: Mapping[str, float]
    epochs: int


def tried_weights(config: TuningConfig) -> dict[str, Sequence[float]]:
    """Returns the values to try of each weight, w1 last: the grid varies it first."""
    return {
        "reconstruction_weight": config.tried_reconstruction_weights,
        "semantic_weight": config.tried_semantic_weights,
        "sparsity_weight": config.tried_sparsity_weights,
    }


def _limited(oracle: Callable[..., keras_tuner.Oracle]) -> Callable[..., keras_tuner.Oracle]:
    """Returns the maker of an oracle that tries no combination twice, or at most that often."""
    return lambda limit, epochs, **options: oracle(max_trials=limit, **options)


def _hyperband(limit: int, epochs: int, **options: Any) -> keras_tuner.Oracle:
    return oracles.HyperbandOracle(max_epochs=epochs, factor=_FACTOR, **options)


_ORACLES: Mapping[str, Callable[..., keras_tuner.Oracle]] = {
    "grid": _limited(oracles.GridSearchOracle),
    "random": _limited(oracles.RandomSearchOracle),
    "bayesian": _limited(oracles.BayesianOptimizationOracle),
    "hyperband": _hyperband,
}


def build_oracle(config: TuningConfig, epochs: int, seed: int) -> keras_tuner.Oracle:
    """Returns the oracle that the settings name; the same arguments make one that asks the same.

    Args:
        config: Which tuner, and what it may try.
        epochs: Alternating epochs of a trial; of Hyperband's longest, the others have a third of
            that, or a ninth, and so on.
        seed: Seed of its choices.

    Raises:
        SfmError: If Hyperband is given a single w1.
    """
    if config.tuner == "hyperband" and not _is_continuous(config):
        raise SfmError(
            "A single tried_sparsity_weights leaves hyperband too little to choose from; expected "
            "two or more, or --tuner=grid."
        )
    tried = tried_weights(config)
    combinations = math.prod(map(len, tried.values()))
    oracle = _ORACLES[config.tuner](
        limit=min(config.max_trials or combinations, combinations),
        epochs=epochs,
        objective=keras_tuner.Objective(OBJECTIVE, "max"),
        hyperparameters=_space(config),
        allow_new_entries=False,
        seed=seed + 1,  # KerasTuner takes 0 for none.
        max_consecutive_failed_trials=sys.maxsize,
    )
    if config.tuner == "hyperband":
        oracle.max_trials = config.max_trials or None
    oracle.verbose = 0
    return oracle


def _is_continuous(config: TuningConfig) -> bool:
    """Tells whether w1 may be anything between the smallest and the largest of those to try."""
    return config.tuner != "grid" and len(config.tried_sparsity_weights) > 1


def _space(config: TuningConfig) -> keras_tuner.HyperParameters:
    space, tried = keras_tuner.HyperParameters(), tried_weights(config)
    continuous = tried.pop(_CONTINUOUS) if _is_continuous(config) else ()
    for name, values in tried.items():
        space.Choice(name, list(values))
    if continuous:
        low, high = min(continuous), max(continuous)
        space.Float(_CONTINUOUS, low, high, sampling="log" if low > 0.0 else "linear")
    return space


def read_assignment(values: Mapping[str, Any], config: TuningConfig, epochs: int) -> Assignment:
    """Returns what the values of a trial's hyperparameters stand for.

    Args:
        values: From a trial. A w1 from in between is rounded to four digits.
        config: What is tried.
        epochs: Alternating epochs where the values do not name any.
    """
    weights = {name: float(values[name]) for name in tried_weights(config)}
    if _is_continuous(config):
        weights[_CONTINUOUS] = float(f"{weights[_CONTINUOUS]:.4g}")
    return Assignment(weights, int(values.get(_EPOCHS, epochs)))
