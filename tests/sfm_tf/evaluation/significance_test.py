import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.significance import exact_mcnemar, holm, wilson_interval


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


def vectors(both, only_first, only_second, neither):
    """Two vectors with these numbers of images."""
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.parametrize(("first", "second"), [*itertools.product((0, 1, 3, 8, 40), repeat=2)])
def test_the_test_is_the_binomial_one_of_the_images_that_differ(first, second):
    found = exact_mcnemar(*vectors(5, first, second, 7))
    assert (found["only_first_right"], found["only_second_right"]) == (first, second)
    assert found["examples"] == 12 + first + second
    differing = first + second
    expected = stats.binomtest(first, differing, 0.5).pvalue if differing else 1.0
    assert found["p_value"] == pytest.approx(expected, rel=1e-12)
    # As the formula of textbooks, in whole numbers.
    tail = sum(math.comb(differing, k) for k in range(min(first, second) + 1))
    assert found["p_value"] == pytest.approx(min(1.0, 2 * tail / 2**differing), rel=1e-12)


def test_who_comes_first_does_not_matter():
    first, second = vectors(3, 9, 2, 1)
    there, back = exact_mcnemar(first, second), exact_mcnemar(second, first)
    assert there["p_value"] == back["p_value"]
    assert there["only_first_right"] == back["only_second_right"] == 9


def test_other_images_are_refused():
    with pytest.raises(SfmError, match=r"Invalid shapes \(2,\) and \(3,\); expected two vectors"):
        exact_mcnemar(np.ones(2, bool), np.ones(3, bool))


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 and never falling.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_stepping_down_by_hand_rejects():
    p_values = np.random.default_rng(1).random(20) ** 4
    rejected = set()
    for rank, place in enumerate(np.argsort(p_values)):
        if p_values[place] > 0.05 / (20 - rank):
            break
        rejected.add(int(place))
    found = {place for place, value in enumerate(holm(list(p_values))) if value <= 0.05}
    assert found == rejected
