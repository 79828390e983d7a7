"""The live line of a program: what it is doing, how far it is, and how fast."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class ProgressLine:
    """Shows how far a stage is; use as a context manager."""

    def __init__(self, stage: str, unit: str = "") -> None:
        """Names the stage that the line begins with, and what it counts, to tell their rate."""
        self._stage, self._unit = stage, unit
        self._rate_start = (0.0, 0)
        self._bar: tqdm | None = None
        self._phase = self._waiting = ""
        self._last_print = time.monotonic()

    def __enter__(self) -> "ProgressLine":
        """Starts the clock."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Leaves the last state of the line on the screen."""
        self._close()

    def update(
        self,
        phase: str,
        done: int,
        total: int | None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Shows that `done` of `total` units of `phase` are finished, with figures beside it.

        Args:
            phase: What is being done; a change of it begins a new line.
            done: Units finished.
            total: Units in all; None where that is not known before the end.
            metrics: Latest figures, by name.
        """
        figures = " ".join(f"{name}={value:.3g}" for name, value in (metrics or {}).items())
        if sys.stderr.isatty():
            self._draw(phase, done, total, figures)
        else:
            self._print(phase, done, total, figures)

    def _draw(self, phase: str, done: int, total: int | None, figures: str) -> None:
        if phase != self._phase or self._bar is None:
            self._close()
            self._phase = phase
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=f"{self._stage}: {phase}",
                unit=f" {self._unit}" if self._unit else "it",
            )
        self._bar.total = total
        self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update(done - self._bar.n)

    def _print(self, phase: str, done: int, total: int | None, figures: str) -> None:
        count = f"{done}" if total is None else f"{done}/{total}"
        speed = self._speed(phase, done, total)
        line = " ".join(f"{self._stage}: {phase} {count} {speed} {figures}".split())
        if phase != self._phase:
            self._print_waiting()
        is_due = time.monotonic() - self._last_print >= _SECONDS_BETWEEN_LINES
        self._waiting = line
        if phase != self._phase or is_due:
            self._print_waiting()
        self._phase = phase

    def _speed(self, phase: str, done: int, total: int | None) -> str:
        """Returns units per second and the seconds left, once there are any in this phase."""
        now = time.monotonic()
        if phase != self._phase:
            self._rate_start = (now, done)
        start, first = self._rate_start
        if not self._unit or done == first or now == start:
            return ""
        rate = (done - first) / (now - start)
        left = "" if total is None else f", {(total - done) / rate:.0f} s left"
        return f"{self._unit}, {rate:.3g} {self._unit}/s{left}"

    def _print_waiting(self) -> None:
        """Prints the latest line that was held back, the last one of its phase among them."""
        if self._waiting:
            print(self._waiting, file=sys.stderr)
            self._waiting, self._last_print = "", time.monotonic()

    def _close(self) -> None:
        self._print_waiting()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
