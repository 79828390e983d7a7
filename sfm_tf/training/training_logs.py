"""What TensorBoard shows of a training: losses, masks, and where a step's time goes."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from sfm_tf.models.defended_model import DefendedModel


class TrainingLogs:
    """Writes the logs of one training; use as a context manager.

    Args:
        folder: Folder of the logs; None for a process that writes none.
        profile_steps: Steps that are profiled.
    """

    def __init__(self, folder: pathlib.Path | None, profile_steps: int = 0) -> None:
        """Opens nothing yet."""
        self._folder = folder
        self._left = profile_steps if folder is not None else 0
        self._is_profiling = False
        self._writer: tf.summary.SummaryWriter | None = None

    def __enter__(self) -> "TrainingLogs":
        """Opens the log."""
        if self._folder is not None:
            self._writer = tf.summary.create_file_writer(str(self._folder))
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes log and profile."""
        self._stop_profile()
        if self._writer is not None:
            self._writer.close()

    def write_epoch(self, number: int, epoch: Mapping[str, Any]) -> None:
        """Writes the figures of the epoch of this number, from 1."""
        with self._at(number):
            for split in ("training", "validation"):
                for name, value in epoch[split].items():
                    tf.summary.scalar(f"{split}/{name}", value)

    def write_masks(self, number: int, defended: DefendedModel, images: tf.Tensor) -> None:
        """Writes, after the epoch of this number, images with their masks and what is left of them.

        Args:
            number: Of the epoch, from 1.
            defended: The model as it is now.
            images: Float32 in [0, 1], shape `(count, height, width, channels)`.
        """
        if self._writer is None or defended.masker is None or not len(images):
            return
        shown = {"mask": defended.mask(images), "masked": defended.masked(images)}
        with self._at(number):
            for name, values in {"image": images, **shown}.items():
                tf.summary.image(f"masks/{name}", values, max_outputs=len(images))

    def profile_step(self, epoch: int) -> None:
        """Is told before each step; profiles as many as were asked for, from the second epoch on.

        Args:
            epoch: Number of the epoch, from 1; the first makes the graphs.
        """
        if self._left and epoch >= 2:
            if not self._is_profiling:
                tf.profiler.experimental.start(str(self._folder))
                self._is_profiling = True
            self._left -= 1
        elif self._is_profiling:
            self._stop_profile()

    def _stop_profile(self) -> None:
        if self._is_profiling:
            tf.profiler.experimental.stop()
            self._is_profiling = False

    @contextlib.contextmanager
    def _at(self, number: int) -> Iterator[None]:
        if self._writer is None:
            with tf.summary.create_noop_writer().as_default(step=number):
                yield
            return
        with self._writer.as_default(step=number):
            yield
        self._writer.flush()
