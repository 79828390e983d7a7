"""Watches each training step: reports progress, and stops at the first loss that is no number."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras

from sfm_tf.errors import SfmError

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with stage, steps done, steps in all and the latest metrics."""

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


class StepWatch(keras.callbacks.Callback):
    """Reports after each step of one pass over the images.

    Args:
        progress: Is told of each step.
        stage: Stage of the training.
        epoch: Number of the epoch, for messages.
        measured: Metrics that the pass measures.
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
        measured: tuple[str, ...],
        earlier: int,
        total: int,
        validation: Mapping[str, float],
    ) -> None:
        """Keeps what it is given."""
        super().__init__()
        self._progress = progress
        self._stage = stage
        self._epoch = epoch
        self._measured = measured
        self._earlier = earlier
        self._total = total
        self._validation = validation

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks the losses, then reports.

        Raises:
            SfmError: If a loss is no number.
        """
        metrics = {name: float(logs[name]) for name in self._measured}
        check_finite(metrics, f"step {batch + 1} of epoch {self._epoch} of {self._stage}")
        done = self._earlier + batch + 1
        self._progress(self._stage, done, self._total, {**metrics, **self._validation})
