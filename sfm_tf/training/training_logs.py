"""What TensorBoard shows of a training: losses, masks, and where a step's time goes."""

import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from sfm_tf.models.defended_model import DefendedModel


class TrainingLogs:
    """Writes the logs of one training; use as a context manager.

    Args:
        folder: Folder of the logs; None for a process that writes none.
        profile_steps: Number of steps to profile.
    """

    def __init__(self, folder: pathlib.Path | None, profile_steps: int = 0) -> None:
        """Opens nothing yet."""
        self._folder = folder
        self._steps_to_profile = profile_steps if folder is not None else 0
        self._is_profiling = False
        self._writer = tf.summary.create_noop_writer()

    def __enter__(self) -> "TrainingLogs":
        """Opens the log."""
        if self._folder is not None:
            self._writer = tf.summary.create_file_writer(str(self._folder))
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes log and profile."""
        self._stop_profile()
        self._writer.close()

    def write_epoch(self, number: int, epoch: Mapping[str, Any]) -> None:
        """Writes the metrics of epoch `number`, counted from 1."""
        with self._writer.as_default(step=number):
            for split in ("training", "validation"):
                for name, value in epoch[split].items():
                    tf.summary.scalar(f"{split}/{name}", value)
        self._writer.flush()

    def write_masks(self, number: int, defended: DefendedModel, images: tf.Tensor) -> None:
        """Writes images with their masks and the masked images.

        Args:
            number: Number of the epoch that ended, from 1.
            defended: The model as it is now.
            images: Float32 in [0, 1], shape `(count, height, width, channels)`.
        """
        if self._folder is None or defended.masker is None or not len(images):
            return
        shown = {"mask": defended.mask(images), "masked": defended.masked(images)}
        with self._writer.as_default(step=number):
            for name, values in {"image": images, **shown}.items():
                tf.summary.image(f"masks/{name}", values, max_outputs=len(images))
        self._writer.flush()

    def profile_step(self, epoch: int) -> None:
        """Profiles the first steps of the second epoch; call it for each step.

        Args:
            epoch: Number of the epoch, from 1. The first one traces the graphs.
        """
        if self._steps_to_profile and epoch >= 2:
            if not self._is_profiling:
                tf.profiler.experimental.start(str(self._folder))
                self._is_profiling = True
            self._steps_to_profile -= 1
        else:
            self._stop_profile()

    def _stop_profile(self) -> None:
        if self._is_profiling:
            tf.profiler.experimental.stop()
            self._is_profiling = False
