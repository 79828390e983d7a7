"""The cross-entropy that attacks climb, as TensorFlow computes it and without its cancellation."""

from collections.abc import Callable, Mapping

import tensorflow as tf

LossFunction = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns TensorFlow's cross-entropy, whose gradient ART's attacks follow.

    Args:
        logits: Float32 of shape `(batch, classes)`.
        labels: Int64 of shape `(batch,)`.

    Returns:
        Float32 of shape `(batch,)`.
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def stable_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the same loss in a form whose gradient float32 can hold.

    TensorFlow's gradient for the label's logit is p - 1. Where the model is confident, p is within
    a few roundings of 1, and at a margin of 17 it is 1: the difference is noise, then zero, and an
    attack steps in a wrong direction although its gradient is not zero. The identity

        -log p = softplus(logsumexp of the other logits - label's logit)

    has no such difference. Its gradient is good to about seven digits up to a margin of 87, where
    float32's range ends.

    Args:
        logits: Float32 of shape `(batch, classes)`, at least two classes.
        labels: Int64 of shape `(batch,)`.

    Returns:
        Float32 of shape `(batch,)`.
    """
    is_label = tf.one_hot(labels, tf.shape(logits)[1], on_value=True, off_value=False)
    others = tf.reduce_logsumexp(tf.where(is_label, -float("inf"), logits), axis=1)
    return tf.nn.softplus(others - tf.gather(logits, labels, batch_dims=1))


LOSSES: Mapping[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "stable_cross_entropy": stable_cross_entropy,
}
"""The losses by the name of an attack's option."""
