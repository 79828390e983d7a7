"""Step sizes that each image halves for itself where its progress stalls."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Percent of the iterations, from Croce and Hein 2020, "Reliable evaluation of adversarial
# robustness with an ensemble of diverse parameter-free attacks": the first checkpoint, by how much
# each gap between two is smaller than the one before, and the smallest gap.
_FIRST_CHECKPOINT = 22
_GAP_DECREASE = 3
_SMALLEST_GAP = 6
_NO_CHECKPOINT = -1


class Pace(NamedTuple):
    """The step size of each image and what decides on it at the next checkpoint.

    Attributes:
        step_size: Float32 `(batch,)`, in the units of the pixels.
        rises: Float32 `(batch,)`: steps since the last checkpoint that increased the loss.
        best_objective: Float32 `(batch,)`: the highest loss as of the last checkpoint.
        halved: Bool `(batch,)`: whether the last checkpoint halved the step.
    """

    step_size: tf.Tensor
    rises: tf.Tensor
    best_objective: tf.Tensor
    halved: tf.Tensor


def checkpoint_windows(iterations: int) -> np.ndarray:
    """Returns where the step sizes are looked at, which is more and more often.

    Args:
        iterations: Number of steps, at least 1.

    Returns:
        Int32 of shape `(iterations + 1,)`, by the number of steps done: at a checkpoint how many
        steps ago the one before was, and -1 elsewhere. The start counts as a checkpoint.
    """
    percent, gap = _FIRST_CHECKPOINT, _FIRST_CHECKPOINT
    windows = np.full(iterations + 1, _NO_CHECKPOINT, np.int32)
    windows[0] = 0
    last = 0
    while percent <= 100:
        checkpoint = -(-percent * iterations // 100)
        if checkpoint > last:
            windows[checkpoint] = checkpoint - last
            last = checkpoint
        gap = max(gap - _GAP_DECREASE, _SMALLEST_GAP)
        percent += gap
    return windows


def initial_pace(step_size: tf.Tensor, batch_size: tf.Tensor) -> Pace:
    """Returns the pace before the first evaluation, with one step size for all images."""
    zeros = tf.zeros(batch_size)
    return Pace(zeros + step_size, zeros, zeros - float("inf"), tf.zeros(batch_size, tf.bool))


def adapt(
    pace: Pace, rose: tf.Tensor, best_objective: tf.Tensor, window: tf.Tensor, rho: tf.Tensor
) -> tuple[Pace, tf.Tensor]:
    """Counts a step and, at a checkpoint, halves the step sizes that do not serve.

    Croce and Hein 2020, section 3: a step is halved if the loss rose in less than `rho` of the
    steps since the last checkpoint (condition 1), or if that checkpoint left the step as it was and
    the best loss has not risen since (condition 2).

    Args:
        pace: The pace before this step.
        rose: Bool `(batch,)`: whether the step increased the loss.
        best_objective: Float32 `(batch,)`: the highest loss so far.
        window: This step's entry of `checkpoint_windows`.
        rho: Scalar in [0, 1].

    Returns:
        The new pace, and bool `(batch,)`: whose step was halved.
    """
    rises = pace.rises + tf.cast(rose, tf.float32)
    rose_rarely = rises < rho * tf.cast(window, tf.float32)
    stalled = ~pace.halved & (best_objective == pace.best_objective)
    is_checkpoint = window != _NO_CHECKPOINT
    halves = is_checkpoint & (rose_rarely | stalled)
    new_pace = Pace(
        tf.where(halves, pace.step_size / 2.0, pace.step_size),
        tf.where(is_checkpoint, 0.0, rises),
        tf.where(is_checkpoint, best_objective, pace.best_objective),
        tf.where(is_checkpoint, halves, pace.halved),
    )
    return new_pace, halves
