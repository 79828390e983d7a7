"""The images an attack comes by, and which of two are the more damaging."""

from typing import NamedTuple

import tensorflow as tf

from sfm_tf.attacks.selection import choose


class Evaluation(NamedTuple):
    """The attacked model at some images.

    Attributes:
        objective: Float32 `(batch,)`: what the attack climbs; minus the loss in a targeted attack.
        fooled: Float32 `(batch,)` in [0, 1]: share of the looks at the image in which the model
            leaves the label, or reaches it in a targeted attack.
    """

    objective: tf.Tensor
    fooled: tf.Tensor


class Candidate(NamedTuple):
    """Images worth returning, with their evaluation and the iteration they were reached in.

    Attributes:
        images: Float32 in [0, 1], `(batch, height, width, channels)`.
        objective: As in `Evaluation`.
        fooled: As in `Evaluation`.
        iterations: Int32 `(batch,)`.
    """

    images: tf.Tensor
    objective: tf.Tensor
    fooled: tf.Tensor
    iterations: tf.Tensor


def evaluate(
    losses: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, targeted: bool, looks: int = 1
) -> Evaluation:
    """Returns how images fare when the model has looked at each several times.

    Args:
        losses: Float32 `(batch * looks,)`, the looks at one image next to each other.
        logits: Float32 `(batch * looks, classes)`.
        labels: Int64 `(batch * looks,)`.
        targeted: Whether labels are classes to reach rather than to leave.
        looks: Times that each image was shown.
    """
    hit = tf.argmax(logits, axis=1) == labels
    objectives, fooled = (-losses, hit) if targeted else (losses, ~hit)
    per_look = (objectives, tf.cast(fooled, tf.float32))
    return Evaluation(*(tf.reduce_mean(tf.reshape(v, (-1, looks)), axis=1) for v in per_look))


def make_candidate(images: tf.Tensor, evaluation: Evaluation, iteration: tf.Tensor) -> Candidate:
    """Returns `images` with their evaluation, all reached in the same iteration, an int32."""
    iterations = tf.fill(tf.shape(evaluation.objective), iteration)
    return Candidate(images, evaluation.objective, evaluation.fooled, iterations)


def worst_candidate(images: tf.Tensor) -> Candidate:
    """Returns `images` as a candidate that any other is better than."""
    objective = tf.fill(tf.shape(images)[:1], -float("inf"))
    return make_candidate(images, Evaluation(objective, tf.zeros_like(objective)), tf.constant(0))


def better(first: Candidate, second: Candidate) -> Candidate:
    """Picks per image: the one that fools the model more, then the higher objective, then `first`.

    An image can have the higher loss of two and yet be classified as its label, by a narrow margin
    over several classes; so fooling comes before the loss.
    """
    fools_more = second.fooled > first.fooled
    climbs = (second.fooled == first.fooled) & (second.objective > first.objective)
    return choose(fools_more | climbs, second, first)
