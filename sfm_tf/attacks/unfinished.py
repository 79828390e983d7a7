"""Going on with those images of a batch that an attack is not done with."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from sfm_tf.attacks.buckets import bucket_size, fill_up, put, take


def advance_unfinished(
    advance: Callable[[Any, Any], Any],
    batch: Any,
    state: Any,
    is_finished: tf.Tensor,
    batch_size: int,
) -> Any:
    """Returns the state after `advance` has worked on the smallest bucket of unfinished images.

    It runs eagerly, between two calls of a compiled function: there the number of images decides
    which of few shapes to compute with.

    Args:
        advance: Maps some rows of the batch and of the state to those rows' new state. It must
            treat every image by itself, because it may see one twice.
        batch: Nested structure of tensors of one first dimension: what the attack is given.
        state: Nested structure of tensors of that dimension: how far it has come.
        is_finished: Bool of that dimension: whose state is to stay.
        batch_size: The largest bucket.
    """
    rows = np.flatnonzero(~is_finished.numpy())
    if len(rows) == 0:
        return state
    bucket = fill_up(rows, bucket_size(len(rows), batch_size))
    return put(state, rows, advance(take(batch, bucket), take(state, bucket)))
