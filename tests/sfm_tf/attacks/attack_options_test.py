import math

import numpy as np
import pytest

from sfm_tf.attacks.attack_options import (
    COUNT,
    FLAG,
    NORM,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    check_options,
)
from sfm_tf.errors import SfmError


@pytest.mark.parametrize(
    ("option", "valid", "invalid"),
    [
        (NORM, [math.inf, "inf", 2, 2.0], [1, "l2", None, [2]]),
        (POSITIVE, [1e-9, 1, np.float32(0.5)], [0, -1, math.nan, math.inf, "1", True, None]),
        (NOT_NEGATIVE, [0, 0.0, np.float32(0.5)], [-1e-9, math.nan, math.inf, "0", False]),
        (SHARE, [1e-9, 1, np.float32(0.5)], [0, 1.001, -0.5, math.nan, math.inf, "1", True]),
        (COUNT, [1, np.int64(7)], [0, -1, 1.0, True, "1"]),
        (SEED, [0, 2**31 - 1], [-1, 2**31, 0.5]),
        (FLAG, [True, False], [0, 1, None]),
    ],
    ids=["norm", "positive", "not_negative", "share", "count", "seed", "flag"],
)
def test_each_kind_tells_valid_from_invalid_values(option, valid, invalid):
    assert [option.is_valid(value) for value in valid] == [True] * len(valid)
    assert [option.is_valid(value) for value in invalid] == [False] * len(invalid)


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(
        SfmError, match="Unknown option 'eps' of Attack; expected one of epsilon, n"
    ):
        check_options("Attack", {"epsilon": POSITIVE, "norm": NORM}, {"eps": 0.1})


def test_a_bad_value_says_what_was_expected():
    with pytest.raises(SfmError, match="Invalid epsilon 0 of Attack; expected a finite number ab"):
        check_options("Attack", {"epsilon": POSITIVE}, {"epsilon": 0})


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
