"""The most damaging image of several attacks, and which attack it is of."""

from typing import NamedTuple

import numpy as np

from sfm_tf.attacks.compiled_attack import AttackOutcome

_NAME_LENGTH = 16


class Verdict(NamedTuple):
    """What the model makes of images.

    Attributes:
        fooled: Float32 `(batch,)` in [0, 1]: share of the looks in which the label is not
            predicted.
        objective: Float32 `(batch,)`: minus the margin of the label.
        loss: Float32 `(batch,)`: the cross-entropy.
    """

    fooled: np.ndarray
    objective: np.ndarray
    loss: np.ndarray


class WorstImages(NamedTuple):
    """The most damaging images so far, with the fields of `AttackOutcome` and of `Verdict`.

    Attributes:
        images: As in `AttackOutcome`.
        loss: As in `Verdict`.
        iterations: As in `AttackOutcome`, of the attack that the image is of.
        zero_gradient: As in `AttackOutcome`.
        fooled: As in `Verdict`.
        objective: As in `Verdict`.
        names: `(batch,)`: whom the image is of.
    """

    images: np.ndarray
    loss: np.ndarray
    iterations: np.ndarray
    zero_gradient: np.ndarray
    fooled: np.ndarray
    objective: np.ndarray
    names: np.ndarray

    def outcome(self) -> AttackOutcome:
        """Returns the images with their diagnostics alone."""
        return AttackOutcome(self.images, self.loss, self.iterations, self.zero_gradient)


def begin_with(images: np.ndarray, verdict: Verdict, name: str) -> WorstImages:
    """Returns the images before any attack.

    Args:
        images: Float32 in [0, 1], `(batch, height, width, channels)`.
        verdict: What the model makes of them.
        name: What stands for an attack's name.
    """
    iterations = np.zeros(len(images), np.int32)
    return WorstImages(
        images.copy(),
        verdict.loss.copy(),
        iterations,
        np.zeros(len(images), bool),
        verdict.fooled.copy(),
        verdict.objective.copy(),
        np.full(len(images), name, f"<U{_NAME_LENGTH}"),
    )


def keep_worse(
    worst: WorstImages,
    rows: np.ndarray,
    outcome: AttackOutcome,
    verdict: Verdict,
    is_allowed: np.ndarray,
    name: str,
) -> None:
    """Replaces images by those that fool the model more, or as much and by a wider margin.

    Args:
        worst: The most damaging images so far; changed in place.
        rows: Indices into it of the images that were attacked.
        outcome: What the attack made of them.
        verdict: What the model makes of that.
        is_allowed: Bool of the rows' shape: which of its images count at all.
        name: Name of the attack, of at most 16 letters.
    """
    fooled_before, objective_before = worst.fooled[rows], worst.objective[rows]
    climbs = (verdict.fooled == fooled_before) & (verdict.objective > objective_before)
    replaces = is_allowed & ((verdict.fooled > fooled_before) | climbs)
    chosen = rows[replaces]
    worst.images[chosen] = outcome.images[replaces]
    worst.iterations[chosen] = outcome.iterations[replaces]
    worst.fooled[chosen] = verdict.fooled[replaces]
    worst.objective[chosen] = verdict.objective[replaces]
    worst.loss[chosen] = verdict.loss[replaces]
    worst.names[chosen] = name
