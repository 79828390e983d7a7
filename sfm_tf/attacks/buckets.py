"""The few batch sizes that attacks compile for, when some images need no more work."""

from typing import Any

import numpy as np
import tensorflow as tf

_HALVINGS = 3


def bucket_size(count: int, batch_size: int) -> int:
    """Returns the smallest bucket that holds `count` images.

    The buckets are the batch size and its half, quarter and eighth, rounded up: an attack that
    drops images compiles for four shapes at most, and fills less than half of a bucket in vain
    unless it is the smallest.

    Args:
        count: Number of images, at least 1; more than the batch size take several batches.
        batch_size: The largest bucket.
    """
    buckets = [-(-batch_size // 2**halvings) for halvings in range(_HALVINGS + 1)]
    return min(size for size in buckets if size >= min(count, batch_size))


def fill_up(rows: np.ndarray, size: int) -> np.ndarray:
    """Returns `rows`, indices of images, with the last one repeated up to `size` of them."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))])


def take(tensors: Any, rows: np.ndarray) -> Any:
    """Returns the given rows of every tensor of a nested structure."""
    indices = tf.constant(rows)
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, indices), tensors)


def put(tensors: Any, rows: np.ndarray, new: Any) -> Any:
    """Returns `tensors` with the given rows replaced by the first rows of those in `new`.

    Args:
        tensors: Nested structure of tensors of one first dimension.
        rows: Distinct indices into it.
        new: The same structure; rows beyond `len(rows)` fill up a bucket and are left out.
    """
    indices = tf.constant(rows)[:, None]

    def update(old: tf.Tensor, replacement: tf.Tensor) -> tf.Tensor:
        return tf.tensor_scatter_nd_update(old, indices, replacement[: len(rows)])

    return tf.nest.map_structure(update, tensors, new)
