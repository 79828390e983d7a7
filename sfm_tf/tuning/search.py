"""The search itself: KerasTuner asks, trials answer, in one process or in several.

KerasTuner can go on from its own files, but not safely: a kill while it writes leaves half a file,
and version 1.4.8 forgets where its grid was. So a search starts anew each time it is called, from
the same seed, and whoever runs the trials returns at once what an earlier run found out. The same
questions get the same answers until the first one that was never answered.
"""

import contextlib
import enum
import functools
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
            "The tuner hyperband needs at least two different tried_sparsity_weights; give more, "
            "or use --tuner=grid."
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


TUNER_ID = "KERASTUNER_TUNER_ID"
ORACLE_IP = "KERASTUNER_ORACLE_IP"
ORACLE_PORT = "KERASTUNER_ORACLE_PORT"


class Role(enum.Enum):
    """What KerasTuner makes of a process; it tells from the environment.

    `ALONE` asks itself for trials and does them. `CHIEF` hands them out to the workers, does none,
    and ends when all are done. `WORKER` does what the chief hands out.
    """

    ALONE = "alone"
    CHIEF = "chief"
    WORKER = "worker"


def role_of(environment: Mapping[str, str]) -> Role:
    """Returns the role that the environment's variables give a process.

    Args:
        environment: `os.environ`, which KerasTuner reads itself.

    Raises:
        SfmError: If only part of the variables is set, or the port is no number.
    """
    if ORACLE_IP not in environment:
        return Role.ALONE
    missing = [name for name in (ORACLE_PORT, TUNER_ID) if not environment.get(name)]
    if missing:
        raise SfmError(
            f"{ORACLE_IP} is set but {' and '.join(missing)} not; expected all three, or none for "
            "a search in this process alone."
        )
    port = environment[ORACLE_PORT]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SfmError(f"Invalid {ORACLE_PORT} {port!r}; expected a number from 1 to 65535.")
    return Role.CHIEF if "chief" in environment[TUNER_ID] else Role.WORKER


Run = Callable[[Assignment], Mapping[str, Any]]
"""Does a trial; returns `clean` and `black_box`, and in `failure` why not, empty if it was done."""

_SECONDS_BETWEEN_QUESTIONS = 0.5


class WeightTuner(base_tuner.BaseTuner):
    """Takes trials from an oracle, or from the chief of several processes, until there are none.

    Args:
        oracle: Says what to try.
        read: From the values of a trial to what they stand for.
        run: Does it.
        role: The part this process has.
        directory: A folder for KerasTuner's own files, which nothing reads.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        read: Callable[[Mapping[str, Any]], Assignment],
        run: Run,
        role: Role,
        directory: str,
    ) -> None:
        """Keeps what it is given; a worker's questions now go to the chief."""
        super().__init__(oracle, directory=directory, project_name="search")
        self._read, self._run, self._role = read, run, role

    def pre_create_trial(self) -> None:
        """Waits a little: a worker that is told to wait asks again at once."""
        if self._role is Role.WORKER:
            time.sleep(_SECONDS_BETWEEN_QUESTIONS)

    def run_trial(self, trial: Any, *arguments: Any, **options: Any) -> dict[str, float]:
        """Returns the objective.

        Raises:
            FailedTrialError: If the weights let the training fail, which ends the trial alone.
            FatalError: For anything else, which ends the search.
        """
        try:
            result = self._run(self._read(trial.hyperparameters.values))
        except Exception as error:
            raise errors.FatalError from error
        if result["failure"]:
            raise errors.FailedTrialError(result["failure"])
        return {OBJECTIVE: result["clean"] + result["black_box"]}


def search(config: TuningConfig, epochs: int, seed: int, role: Role, run: Run) -> list[Assignment]:
    """Has trials done until the oracle wants no more.

    Args:
        config: What is tried, and how it is picked.
        epochs: Alternating epochs of a trial.
        seed: Seed of the picking.
        role: The part this process has. `CHIEF` calls nothing; it waits until the workers have done
            all trials. `WORKER` finds it by KerasTuner's environment variables.
        run: Does a trial, or returns what an earlier call found.

    Returns:
        What was tried, each once, in order; nothing for a worker.

    Raises:
        SfmError: If the chief cannot be reached or cannot serve.
    """
    read = functools.partial(read_assignment, config=config, epochs=epochs)
    oracle = build_oracle(config, epochs, seed)
    with tempfile.TemporaryDirectory() as directory, _plain_errors(role):
        WeightTuner(oracle, read, run, role, directory).search()
    assignments: list[Assignment] = []
    for trial_id in oracle.start_order:
        assignment = read(oracle.trials[trial_id].hyperparameters.values)
        if assignment not in assignments:
            assignments.append(assignment)
    return assignments


@contextlib.contextmanager
def _plain_errors(role: Role) -> Iterator[None]:
    """Raises what a trial raised, and says in words what is wrong between processes."""
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
                "KERASTUNER_ORACLE_PORT to chief and workers."
            ) from error
        raise
