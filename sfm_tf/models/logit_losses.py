"""Losses made of differences of logits, which do not vanish where a model is confident."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from sfm_tf.errors import SfmError

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


# As in the authors' code: only where the largest logits are all equal does it play a part.
_SMALL = 1e-12


def margin(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns by how much the label's logit exceeds every other one.

    Args:
        logits: Float32 of shape `(batch, classes)`, at least two classes.
        labels: Int64 of shape `(batch,)`.

    Returns:
        Float32 of shape `(batch,)`: positive where the label is predicted, negative where it is
        not.
    """
    others = tf.reduce_max(without_label(logits, labels), axis=1)
    return tf.gather(logits, labels, batch_dims=1) - others


def negative_margin(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns a loss whose gradient has the same direction at any scale of the logits.

    It is the loss f6 of Carlini and Wagner 2017, "Towards evaluating the robustness of neural
    networks"; where logits are tiny, the cross-entropy's gradient weighs all wrong classes alike.

    Args:
        logits: Float32 of shape `(batch, classes)`, at least two classes.
        labels: Int64 of shape `(batch,)`.

    Returns:
        Float32 of shape `(batch,)`: positive where the label is not predicted.
    """
    return -margin(logits, labels)


LOSSES: Mapping[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "stable_cross_entropy": stable_cross_entropy,
    "margin": negative_margin,
}
"""The losses by the name of an attack's option."""


def without_label(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the logits with minus infinity in the place of the label's, same shapes."""
    is_label = tf.one_hot(labels, tf.shape(logits)[1], on_value=True, off_value=False)
    return tf.where(is_label, -float("inf"), logits)


def difference_of_logits_ratio(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the DLR loss, which does not depend on the scale of the logits.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020, section 4: -(margin of the label) / (z1 - z3), with
    z1 >= z2 >= z3 the highest logits.

    Args:
        logits: Float32 of shape `(batch, classes)`, at least three classes.
        labels: Int64 of shape `(batch,)`.

    Returns:
        Float32 of shape `(batch,)`: at least -1; positive where the label is not predicted.

    Raises:
        SfmError: If there are fewer than three classes.
    """
    check_class_count("DLR", logits.shape[1], 3)
    highest = tf.math.top_k(logits, 3).values
    return -margin(logits, labels) / (highest[:, 0] - highest[:, 2] + _SMALL)


def targeted_difference_of_logits_ratio(
    logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor
) -> tf.Tensor:
    """Returns the DLR loss for one wrong class, by Croce and Hein 2020.

    It is -(label's logit - target's logit) / (z1 - (z3 + z4) / 2), with z1 >= z2 >= z3 >= z4 the
    highest logits.

    Args:
        logits: Float32 of shape `(batch, classes)`, at least four classes.
        labels: Int64 of shape `(batch,)`: the classes to leave.
        targets: Int64 or int32 of shape `(batch,)`: the classes to reach.

    Returns:
        Float32 of shape `(batch,)`: positive where the target's logit exceeds the label's.

    Raises:
        SfmError: If there are fewer than four classes.
    """
    check_class_count("targeted DLR", logits.shape[1], 4)
    highest = tf.math.top_k(logits, 4).values
    difference = tf.gather(logits, labels, batch_dims=1) - tf.gather(logits, targets, batch_dims=1)
    scale = highest[:, 0] - 0.5 * (highest[:, 2] + highest[:, 3])
    return -difference / (scale + _SMALL)


def check_class_count(loss: str, class_count: int, expected: int) -> None:
    """Checks that a model has enough classes for a loss.

    Args:
        loss: The loss by the name in the message.
        class_count: Classes of the model.
        expected: Classes that the loss needs.

    Raises:
        SfmError: If there are fewer.
    """
    if class_count < expected:
        raise SfmError(
            f"The {loss} loss needs a model of at least {expected} classes; found {class_count}. "
            "Attack the cross-entropy instead."
        )
