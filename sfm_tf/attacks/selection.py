"""Choosing between two outcomes image by image."""

from typing import Any

import tensorflow as tf


def choose(condition: tf.Tensor, chosen: Any, other: Any) -> Any:
    """Returns per image what `chosen` has where the condition holds, and `other` elsewhere.

    Args:
        condition: Bool of shape `(batch,)`.
        chosen: A structure of tensors of shape `(batch, ...)`.
        other: A structure of the same form.
    """

    def pick(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reshape(condition, [-1] + [1] * (first.shape.rank - 1)), first, second)

    return tf.nest.map_structure(pick, chosen, other)
