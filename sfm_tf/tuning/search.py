"""The search itself: KerasTuner asks, trials answer, in one process or in several.

KerasTuner can go on from its own files, but not safely: a kill while it writes leaves half a file,
and version 1.4.8 forgets where its grid was. So a search starts anew each time it is called, from
the same seed, and whoever runs the trials returns at once what an earlier run found out. The same
questions get the same answers until the first one that was never answered.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import keras_tuner
from keras_tuner import errors
from keras_tuner.engine import base_tuner

from sfm_tf.errors import SfmError
from sfm_tf.tuning.oracles import OBJECTIVE, Assignment, build_oracle, read_assignment
from sfm_tf.tuning.roles import Role
from sfm_tf.tuning_config import TuningConfig

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
