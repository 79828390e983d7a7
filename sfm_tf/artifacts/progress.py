"""How a long piece of work tells how far it is. It stands here because every layer tells it."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Is called with each step of a piece of work."""

    def __call__(
        self,
        phase: str,
        done: int,
        total: int | None,
        metrics: Mapping[str, float] | None = None,
        /,
    ) -> None:
        """Hears that `done` of `total` units of `phase` are finished.

        Args:
            phase: What is being done.
            done: Units finished.
            total: Units in all; None where that is not known before the end.
            metrics: Latest figures, by name.
        """
