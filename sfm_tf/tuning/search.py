"""The search: KerasTuner proposes weights, trials score them, in one process or in several.

KerasTuner can resume from its own files, but not safely: a kill while it writes leaves half a file,
and version 1.4.8 forgets how far its grid was. So each search starts again from the same seed, and
the function that runs the trials returns at once what an earlier search found. KerasTuner then
proposes the same trials, up to the first one that was never finished.
"""

import contextlib
import enum
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
import keras_tuner
from keras_tuner import errors, oracles
from keras_tuner.engine import base_tuner

from sfm_tf.errors import SfmError
from sfm_tf.tuning.settings import TuningConfig

OBJECTIVE = "clean_and_black_box"
"""Name of what is maximised: clean plus black-box accuracy (section 6.2)."""

_EPOCHS = "tuner/epochs"  # Hyperband's name for them.
_CONTINUOUS = "sparsity_weight"
_ORACLES: Mapping[str, Callable[..., keras_tuner.Oracle]] = {
    "grid": oracles.GridSearchOracle,
    "random": oracles.RandomSearchOracle,
    "bayesian": oracles.BayesianOptimizationOracle,
    "hyperband": oracles.HyperbandOracle,
}


class Hyperparameters(NamedTuple):
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


def build_oracle(config: TuningConfig, epochs: int, seed: int) -> keras_tuner.Oracle:
    """Returns the oracle of the settings; equal arguments make oracles that propose the same.

    Args:
        config: Which tuner, and what it may try.
        epochs: Alternating epochs of a trial. For Hyperband those of its longest trials; the others
            have a third of them, or a ninth, and so on.
        seed: Seed of its choices.

    Raises:
        SfmError: If Hyperband is given a single w1.
    """
    is_hyperband = config.tuner == "hyperband"
    if is_hyperband and not _is_continuous(config):
        raise SfmError(
            "The tuner hyperband needs at least two different tried_sparsity_weights; give more, "
            "or use --tuner=grid."
        )
    combinations = math.prod(map(len, tried_weights(config).values()))
    limit = {"max_trials": min(config.max_trials or combinations, combinations)}
    oracle = _ORACLES[config.tuner](
        **({"max_epochs": epochs, "factor": 3} if is_hyperband else limit),
        objective=keras_tuner.Objective(OBJECTIVE, "max"),
        hyperparameters=_space(config),
        allow_new_entries=False,
        seed=seed + 1,  # KerasTuner takes 0 for none.
        max_consecutive_failed_trials=sys.maxsize,
    )
    if is_hyperband:
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


def read_hyperparameters(
    values: Mapping[str, Any], config: TuningConfig, epochs: int
) -> Hyperparameters:
    """Returns the weights and epochs of a KerasTuner trial.

    Args:
        values: Hyperparameters of the trial. A w1 from a range is rounded to four digits.
        config: What is tried.
        epochs: Alternating epochs unless the values hold some.
    """
    weights = {name: float(values[name]) for name in tried_weights(config)}
    if _is_continuous(config):
        weights[_CONTINUOUS] = float(f"{weights[_CONTINUOUS]:.4g}")
    return Hyperparameters(weights, int(values.get(_EPOCHS, epochs)))


TUNER_ID = "KERASTUNER_TUNER_ID"
ORACLE_IP = "KERASTUNER_ORACLE_IP"
ORACLE_PORT = "KERASTUNER_ORACLE_PORT"


class Role(enum.Enum):
    """Role of a process in a search, as KerasTuner reads it from the environment.

    `ALONE` proposes trials and runs them. `CHIEF` hands them out to the workers, runs none and ends
    when all are finished. `WORKER` runs what the chief hands out.
    """

    ALONE = "alone"
    CHIEF = "chief"
    WORKER = "worker"


def role_of(environment: Mapping[str, str]) -> Role:
    """Returns the role that environment variables give a process.

    Args:
        environment: `os.environ`, which KerasTuner reads itself.

    Raises:
        SfmError: If only some of the variables are set, or the port is not a number.
    """
    if ORACLE_IP not in environment:
        return Role.ALONE
    missing = [name for name in (ORACLE_PORT, TUNER_ID) if not environment.get(name)]
    if missing:
        raise SfmError(
            f"{ORACLE_IP} is set, but {' and '.join(missing)} not; set all three, or none to "
            "search in this process alone."
        )
    port = environment[ORACLE_PORT]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SfmError(f"Invalid {ORACLE_PORT} {port!r}; expected a number from 1 to 65535.")
    return Role.CHIEF if "chief" in environment[TUNER_ID] else Role.WORKER


_SECONDS_BETWEEN_QUESTIONS = 0.5


class WeightTuner(base_tuner.BaseTuner):
    """Takes trials from an oracle, or from the chief of several processes, until there are none.

    Args:
        oracle: Proposes trials.
        run: Runs a trial of these hyperparameter values; returns `clean`, `black_box` and
            `failure`.
        role: Role of this process.
        directory: A folder for KerasTuner's own files, which nothing reads.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        run: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        role: Role,
        directory: str,
    ) -> None:
        """Connects a worker to the chief."""
        super().__init__(oracle, directory=directory, project_name="search")
        self._run, self._role = run, role

    def pre_create_trial(self) -> None:
        """Waits a little, because a worker that is told to wait asks again at once."""
        if self._role is Role.WORKER:
            time.sleep(_SECONDS_BETWEEN_QUESTIONS)

    def run_trial(self, trial: Any, *arguments: Any, **options: Any) -> dict[str, float]:
        """Returns the objective.

        Raises:
            FailedTrialError: If the training failed with these weights; it ends this trial only.
            FatalError: For any other error; it ends the search.
        """
        try:
            result = self._run(trial.hyperparameters.values)
        except Exception as error:
            raise errors.FatalError from error
        if result["failure"]:
            raise errors.FailedTrialError(result["failure"])
        return {OBJECTIVE: result["clean"] + result["black_box"]}


def search(
    config: TuningConfig,
    epochs: int,
    seed: int,
    role: Role,
    run: Callable[[Hyperparameters], Mapping[str, Any]],
) -> list[Hyperparameters]:
    """Runs trials until the oracle proposes no more.

    Args:
        config: What is tried, and how it is chosen.
        epochs: Alternating epochs of a trial.
        seed: Seed of the choices.
        role: Role of this process. The chief runs no trial but waits until the workers have run
            all. A worker finds the chief by KerasTuner's environment variables.
        run: Runs a trial, or returns what an earlier call found: `clean` and `black_box`, and in
            `failure` the reason if there is no result, else nothing.

    Returns:
        What was tried, each once, in order; nothing for a worker.

    Raises:
        SfmError: If the chief cannot be reached, or cannot use its port.
    """

    def read(trial_values: Mapping[str, Any]) -> Hyperparameters:
        return read_hyperparameters(trial_values, config, epochs)

    oracle = build_oracle(config, epochs, seed)
    with tempfile.TemporaryDirectory() as directory, _plain_errors(role):
        WeightTuner(oracle, lambda values: run(read(values)), role, directory).search()
    tried: list[Hyperparameters] = []
    for trial_id in oracle.start_order:
        hyperparameters = read(oracle.trials[trial_id].hyperparameters.values)
        if hyperparameters not in tried:
            tried.append(hyperparameters)
    return tried


@contextlib.contextmanager
def _plain_errors(role: Role) -> Iterator[None]:
    """Raises what a trial raised, and explains errors between processes."""
    try:
        yield
    except errors.FatalError as error:
        raise (error.__cause__ or error) from None
    except grpc.RpcError as error:
        raise SfmError(
            f"The chief of the search does not answer ({error.code().name}); start it, then this "
            "worker again. Finished trials are kept."
        ) from error
    except RuntimeError as error:
        if role is Role.CHIEF and "bind" in str(error):
            raise SfmError(
                f"The chief cannot serve the search ({error}); free the port or give another "
                f"{ORACLE_PORT} to chief and workers."
            ) from error
        raise
