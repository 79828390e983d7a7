"""Watches each training step: reports progress, and stops at the first loss that is no number."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from sfm_tf.errors import SfmError

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with stage, steps done, steps in all and the latest metrics."""

_STEPS_BEHIND = 4

_REMEDIES = {
    "classification_loss": "lower classifier_learning_rate",
    "mask_loss": "lower masker_learning_rate or the weights of its loss",
}


def check_finite(metrics: Mapping[str, float], place: str) -> None:
    """Raises if a loss is infinite or not a number.

    Args:
        metrics: Values by name.
        place: Where they were measured, for the message.

    Raises:
        SfmError: Names the loss and what to change.
    """
    for name, remedy in _REMEDIES.items():
        if not math.isfinite(metrics.get(name, 0.0)):
            raise SfmError(
                f"{name} became {metrics[name]} in {place}; {remedy}, or set "
                "mixed_precision to float32."
            )


class StepWatch:
    """Reports the steps of one pass over the images, in order, a few steps late.

    A device computes steps while earlier ones are looked at; to look at each at once would keep it
    waiting.

    Args:
        progress: Is told of each step.
        stage: Stage of the training.
        epoch: Number of the epoch, for messages.
        earlier: Steps of this stage done before the pass.
        total: Steps of this stage in all.
        validation: Latest figures of the validation images, to be shown beside.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        stage: str,
        epoch: int,
        earlier: int,
        total: int,
        validation: Mapping[str, float],
    ) -> None:
        """Keeps what it is given."""
        self._progress = progress
        self._stage = stage
        self._epoch = epoch
        self._earlier = earlier
        self._total = total
        self._validation = validation
        self._waiting: deque[tuple[int, Mapping[str, Any]]] = deque()

    def add(self, step: int, measured: Mapping[str, Any]) -> None:
        """Takes the figures of the next step and looks at one that is long done.

        Args:
            step: Number in the pass, from 1.
            measured: Scalars by name, that may still be being computed.

        Raises:
            SfmError: If a loss is no number.
        """
        self._waiting.append((step, measured))
        while len(self._waiting) > _STEPS_BEHIND:
            self._look()

    def finish(self) -> None:
        """Looks at all steps that are left.

        Raises:
            SfmError: If a loss is no number.
        """
        while self._waiting:
            self._look()

    def _look(self) -> None:
        step, measured = self._waiting.popleft()
        metrics = {name: float(value) for name, value in measured.items()}
        check_finite(metrics, f"step {step} of epoch {self._epoch} of {self._stage}")
        done = self._earlier + step
        self._progress(self._stage, done, self._total, {**metrics, **self._validation})
