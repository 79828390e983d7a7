"""What an attack's options may be, as values that each attack declares its options with."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sfm_tf.attacks.norm_balls import BALLS
from sfm_tf.errors import SfmError


class Option(NamedTuple):
    """A kind of value and how an error message describes it."""

    is_valid: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


NORM = Option(
    lambda value: isinstance(value, int | float | str) and value in BALLS, "'inf', math.inf or 2"
)
POSITIVE = Option(
    lambda value: _is_number(value) and 0.0 < value < math.inf, "a finite number above 0"
)
NOT_NEGATIVE = Option(
    lambda value: _is_number(value) and 0.0 <= value < math.inf, "a finite number of at least 0"
)
SHARE = Option(
    lambda value: _is_number(value) and 0.0 < value <= 1.0, "a number above 0, at most 1"
)
COUNT = Option(lambda value: _is_integer(value) and value >= 1, "an integer of at least 1")
SEED = Option(
    lambda value: _is_integer(value) and 0 <= value < 2**31, "an integer from 0 to 2^31-1"
)
FLAG = Option(lambda value: isinstance(value, bool), "True or False")


def check_options(attack: str, declared: dict[str, Option], values: dict[str, Any]) -> None:
    """Checks `values` against what `attack` declares.

    Raises:
        SfmError: If an option is unknown or its value is not of the declared kind.
    """
    for name, value in values.items():
        if name not in declared:
            known = ", ".join(declared)
            raise SfmError(f"Unknown option {name!r} of {attack}; expected one of {known}.")
        if not declared[name].is_valid(value):
            expected = declared[name].expected
            raise SfmError(f"Invalid {name} {value!r} of {attack}; expected {expected}.")
