"""How a setting is declared: once, with its help and its limits.

The command-line flag, its help text and the check of its value all follow from that declaration.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from sfm_tf.errors import SfmError

PIXEL_LEVELS = 255.0
"""Perturbation sizes are configured in 1/255, the step of an 8-bit image, as the paper does."""


def setting(
    default: Any,
    help_text: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    is_place: bool = False,
) -> Any:
    """Declares a dataclass field together with its help text and limits.

    Args:
        default: Value when neither the preset nor a flag says otherwise. Its type is the field's.
        help_text: One sentence for `--help`.
        choices: The values allowed; empty where any value of the type is.
        minimum: Smallest value allowed, inclusive.
        maximum: Largest value allowed, inclusive.
        is_place: Whether it says where something is that is read. What is there counts for a
            result, and where it is does not.

    Returns:
        A `dataclasses.field` with these as metadata.
    """
    metadata = {
        "help": help_text,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "is_place": is_place,
    }
    return dataclasses.field(default=default, metadata=metadata)


def _check_value(name: str, value: Any, metadata: Any) -> None:
    choices, minimum, maximum = metadata["choices"], metadata["minimum"], metadata["maximum"]
    items = value if isinstance(value, tuple) else (value,)
    if len(set(items)) != len(items):
        raise SfmError(
            f"Invalid {name} {', '.join(map(str, items))}; expected each value only once."
        )
    for item in items:
        if isinstance(item, float) and not math.isfinite(item):
            raise SfmError(f"Invalid {name} {item!r}; expected a finite number.")
        if choices and item not in choices:
            raise SfmError(f"Unknown {name} {item!r}; expected one of {', '.join(choices)}.")
        if minimum is not None and not item >= minimum:
            raise SfmError(f"Invalid {name} {item!r}; expected at least {minimum}.")
        if maximum is not None and not item <= maximum:
            raise SfmError(f"Invalid {name} {item!r}; expected at most {maximum}.")


class Settings:
    """Checks every field against the limits it was declared with when an instance is made."""

    def __post_init__(self) -> None:
        """Raises `SfmError` for the first field whose value is outside its limits."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            _check_value(field.name, getattr(self, field.name), field.metadata)
