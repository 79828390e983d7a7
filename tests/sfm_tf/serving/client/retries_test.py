import random
import time

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.retries import RetryPolicy, with_retries
from sfm_tf.serving.client.server_error import ServerError


class _Clock:
    """Time that passes only in pauses, and by `step` at each attempt."""

    def __init__(self, monkeypatch, step=0.0):
        self.now, self.step, self.pauses = 100.0, step, []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def _failing(clock, times, **error):
    """An attempt that fails `times` times and then returns the seconds it was given."""
    calls = []

    def attempt(seconds):
        calls.append(seconds)
        clock.now += clock.step
        if len(calls) <= times:
            raise ServerError("busy", code="503", **error)
        return calls

    return attempt


def test_pauses_double_up_to_the_longest_and_lose_at_most_half(monkeypatch):
    policy = RetryPolicy(attempts=6, first_wait_seconds=1.0, longest_wait_seconds=5.0)
    for draw, expected in ((0.0, [1, 2, 4, 5, 5]), (0.5, [0.75, 1.5, 3, 3.75, 3.75])):
        clock = _Clock(monkeypatch)
        monkeypatch.setattr(random, "random", lambda draw=draw: draw)
        with_retries(_failing(clock, 5, retryable=True), policy)
        assert clock.pauses == expected


def test_pauses_differ_between_clients(monkeypatch):
    pauses = []
    for _ in range(20):
        clock = _Clock(monkeypatch)
        with_retries(_failing(clock, 1, retryable=True), RetryPolicy())
        pauses += clock.pauses
    assert len(set(pauses)) > 10
    assert min(pauses) >= 0.1
    assert max(pauses) <= 0.2


def test_each_attempt_is_given_the_seconds_that_are_left(monkeypatch):
    clock = _Clock(monkeypatch, step=2.0)
    monkeypatch.setattr(random, "random", lambda: 0.0)
    policy = RetryPolicy(first_wait_seconds=1.0, deadline_seconds=10.0)
    assert with_retries(_failing(clock, 2, retryable=True), policy) == [10.0, 7.0, 3.0]


def test_an_error_that_is_not_retryable_is_raised_as_it_is(monkeypatch):
    clock = _Clock(monkeypatch)
    with pytest.raises(ServerError, match="^busy$"):
        with_retries(_failing(clock, 1, retryable=False), RetryPolicy())
    assert clock.pauses == []


def test_gives_up_after_the_last_attempt_without_a_pause(monkeypatch):
    clock = _Clock(monkeypatch)
    with pytest.raises(ServerError, match=r"^busy \(Gave up .* 3 of 3 attempts\.\)$") as caught:
        with_retries(_failing(clock, 3, retryable=True), RetryPolicy(attempts=3))
    assert len(clock.pauses) == 2
    assert (caught.value.code, caught.value.retryable) == ("503", False)


def test_gives_up_rather_than_pause_beyond_the_deadline(monkeypatch):
    clock = _Clock(monkeypatch, step=4.0)
    monkeypatch.setattr(random, "random", lambda: 0.0)
    policy = RetryPolicy(attempts=9, first_wait_seconds=1.0, deadline_seconds=10.0)
    with pytest.raises(ServerError, match=r"after 9\.0 of 10 seconds and 2 of 9 attempts"):
        with_retries(_failing(clock, 9, retryable=True), policy)
    assert clock.pauses == [1.0]


def test_a_server_that_asks_for_a_longer_pause_gets_it(monkeypatch):
    clock = _Clock(monkeypatch)
    with_retries(_failing(clock, 1, retryable=True, wait_seconds=7.0), RetryPolicy())
    assert clock.pauses == [7.0]


@pytest.mark.parametrize(
    "settings", [{"attempts": 0}, {"deadline_seconds": 0.0}, {"deadline_seconds": float("nan")}]
)
def test_refuses_senseless_settings(settings):
    with pytest.raises(SfmError, match="expected at least 1 attempt and more than 0 seconds"):
        RetryPolicy(**settings)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
