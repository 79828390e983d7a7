import math

import pytest
from scipy import stats

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.intervals import wilson_interval


def _wilson(successes, count, confidence):
    z = stats.norm.ppf(0.5 + confidence / 2)
    share = successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize(("successes", "count"), [(8, 10), (1, 1000), (500, 1000), (37, 40)])
def test_is_the_formula_of_wilson(successes, count, confidence):
    expected = _wilson(successes, count, confidence)
    assert wilson_interval(successes, count, confidence) == pytest.approx(expected, abs=1e-9)


def test_published_example():
    # Newcombe 1998, table I: 81 of 263 by method 3 is 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("successes", "end"), [(0, 0), (20, 1)])
def test_stays_within_0_and_1(successes, end):
    interval = wilson_interval(successes, 20)
    assert interval[end] == pytest.approx(end, abs=1e-12)
    assert 0 < abs(interval[1] - interval[0]) < 0.2


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (5, 4), (-1, 4)])
def test_impossible_counts_are_refused(successes, count):
    with pytest.raises(SfmError, match=f"{successes} successes in {count} trials"):
        wilson_interval(successes, count)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
