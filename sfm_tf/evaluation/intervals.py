"""How sure one can be of an accuracy measured on a sample."""

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
