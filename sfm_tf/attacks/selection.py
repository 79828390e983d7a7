"""Choosing between two outcomes image by image."""

import functools
from typing import Any

import tensorflow as tf


def choose(condition: tf.Tensor, chosen: Any, other: Any) -> Any:
    """Returns per image what `chosen` has where the condition holds, and `other` elsewhere.

    Args:
        condition: Bool of shape `(batch,)`.
        chosen: A structure of tensors of shape `(batch, ...)`.
        other: A structure of the same form.
    """

    # Unlike `tf.where`, this older operation picks whole rows, several times as fast on a CPU.
    pick = functools.partial(tf.raw_ops.Select, condition=condition)
    return tf.nest.map_structure(lambda x, y: pick(x=x, y=y), chosen, other)
