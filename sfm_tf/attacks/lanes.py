"""A batch attacked in parts side by side, which keeps the cores of a CPU busy."""

import concurrent.futures
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

_SMALLEST_PART = 16
"""Images; fewer cost more in calls than they win."""

_Batch = TypeVar("_Batch", bound=tuple[np.ndarray, ...])
_Outcome = TypeVar("_Outcome", bound=tuple[tf.Tensor, ...])


def attack_in_lanes(attack: Callable[[Any], _Outcome], batch: _Batch, lanes: int) -> _Outcome:
    """Returns what `attack` makes of a batch, of its parts at the same time if that is faster.

    On a CPU an operation seldom keeps all cores busy to its end; those of another part fill the
    gaps. On a GPU, or with few images, the batch is left whole.

    Args:
        attack: From a batch of tensors to an outcome, a named tuple of tensors, each with a row for
            each image; the rows of an image must not depend on those beside it. It runs in threads.
        batch: Named tuple of arrays with a row for each image.
        lanes: Number of parts, of equal size.
    """
    part = len(batch[0]) // lanes
    if part * lanes < len(batch[0]) or part < _SMALLEST_PART or _has_gpu():
        lanes, part = 1, len(batch[0])
    if lanes == 1:
        return attack(_tensors(batch, slice(part)))
    parts = [_tensors(batch, slice(part * lane, part * (lane + 1))) for lane in range(lanes)]
    with concurrent.futures.ThreadPoolExecutor(lanes) as threads:
        outcomes = list(threads.map(attack, parts))
    return type(outcomes[0])(*(tf.concat(rows, axis=0) for rows in zip(*outcomes, strict=True)))


def _has_gpu() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))


def _tensors(batch: _Batch, rows: slice) -> _Batch:
    return type(batch)(*(tf.constant(array[rows]) for array in batch))
