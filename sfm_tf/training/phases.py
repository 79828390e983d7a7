"""The phases of a training step, and what is measured in each."""

import enum


class Phase(enum.IntEnum):
    """Which part a training step changes.

    `BOTH` changes first the classifier, then the masker, which learns from the logits that the
    former step computed: a third of that phase's forward passes less.
    """

    CLASSIFIER = 0
    MASKER = 1
    BOTH = 2


CLASSIFIER_METRICS = ("classification_loss", "accuracy")
MASKER_METRICS = (
    "mask_loss",
    "sparsity",
    "semantic",
    "reconstruction",
    "mask_mean",
    "mask_spread",
)
TRAINING_METRICS = {
    Phase.CLASSIFIER: CLASSIFIER_METRICS,
    Phase.MASKER: MASKER_METRICS,
    Phase.BOTH: CLASSIFIER_METRICS + MASKER_METRICS,
}
"""What a training step measures in each phase; its other metrics stay 0."""
