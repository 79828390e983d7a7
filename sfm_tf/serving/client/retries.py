"""Trying again with growing pauses, within a deadline."""

import dataclasses
import random
import time
from collections.abc import Callable
from typing import TypeVar

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.server_error import ServerError

Result = TypeVar("Result")

_LEAST_SECONDS = 0.001  # A pause can last longer than asked, past the deadline.


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """How often and how long one request is tried.

    The pause before a repetition doubles from `first_wait_seconds` to `longest_wait_seconds`. A
    random half of it is left out, so that clients that failed together do not return together.

    Attributes:
        attempts: How often a request is sent at most; 1 never repeats it.
        first_wait_seconds: Longest pause before the first repetition.
        longest_wait_seconds: Longest pause before any repetition; a server that asks for a longer
            one gets it.
        deadline_seconds: Time for a request with all its repetitions and pauses.
    """

    attempts: int = 5
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 5.0
    deadline_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Raises `SfmError` unless the numbers make sense."""
        if self.attempts < 1 or not self.deadline_seconds > 0:
            raise SfmError(
                f"Invalid attempts={self.attempts}, deadline_seconds={self.deadline_seconds}; "
                "expected at least 1 attempt and more than 0 seconds."
            )


DEFAULT_POLICY = RetryPolicy()
"""Five attempts within a minute."""


def with_retries(attempt: Callable[[float], Result], policy: RetryPolicy) -> Result:
    """Returns what `attempt` returns, repeating it while its errors are retryable.

    Args:
        attempt: Sends the request once; is given the seconds left to the deadline.
        policy: How often and how long.

    Raises:
        ServerError: If an error is not retryable, or attempts or time are used up.
    """
    start = time.monotonic()
    number = 0
    while True:
        number += 1
        try:
            left = policy.deadline_seconds - (time.monotonic() - start)
            return attempt(max(left, _LEAST_SECONDS))
        except ServerError as error:
            if not error.retryable:
                raise
            wait = max(error.wait_seconds, _pause(number, policy))
            elapsed = time.monotonic() - start
            if number == policy.attempts or elapsed + wait >= policy.deadline_seconds:
                raise ServerError(
                    f"{error} (Gave up after {elapsed:.1f} of {policy.deadline_seconds:g} seconds "
                    f"and {number} of {policy.attempts} attempts.)",
                    code=error.code,
                ) from error
        time.sleep(wait)


def _pause(number: int, policy: RetryPolicy) -> float:
    longest = min(policy.longest_wait_seconds, policy.first_wait_seconds * 2 ** (number - 1))
    return longest * (1 - random.random() / 2)
