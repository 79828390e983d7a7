"""How much of a figure may be chance: interval of a share, test of a difference, many tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from sfm_tf.errors import SfmError


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the score interval of a proportion (Wilson 1927).

    Args:
        successes: How many trials succeeded.
        count: How many there were, at least 1.
        confidence: Share of such intervals that hold the true proportion, in (0, 1).

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        SfmError: If the successes are not from 0 to `count`, or there were no trials.
    """
    if not (count >= 1 and 0 <= successes <= count):
        raise SfmError(f"Cannot take an interval of {successes} successes in {count} trials.")
    interval = stats.binomtest(int(successes), int(count)).proportion_ci(confidence, "wilson")
    return float(interval.low), float(interval.high)


def exact_mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict[str, Any]:
    """Compares two models on the same images (McNemar 1947, the exact binomial test).

    If both were right equally often, an image that only one of them is right on would be the
    first's or the second's with even chances.

    Args:
        first_right: Bool of shape `(count,)`: whether the first model is right on each image.
        second_right: The same of the second.

    Returns:
        `examples`, `only_first_right` and `only_second_right`, numbers of images, and the two-sided
        `p_value`, 1 where they never differ.

    Raises:
        SfmError: If the vectors are not of the same images.
    """
    first, second = np.asarray(first_right, bool), np.asarray(second_right, bool)
    if first.ndim != 1 or first.shape != second.shape:
        raise SfmError(
            f"Invalid shapes {first.shape} and {second.shape}; expected two vectors of the same "
            "images."
        )
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    differing = only_first + only_second
    test = stats.binomtest(only_first, differing) if differing else None
    return {
        "examples": len(first),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": float(test.pvalue) if test else 1.0,
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for being several (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(factors * np.asarray(p_values, float)[order])
    return np.minimum(corrected, 1.0).tolist()
