"""A constructor made of the table of an attack's options."""

import inspect
from collections.abc import Mapping
from typing import Any

from sfm_tf.attacks.attack_options import Option
from sfm_tf.errors import SfmError


def constructor_signature(
    options: Mapping[str, Option], defaults: Mapping[str, Any]
) -> inspect.Signature:
    """Returns the signature that `help` and editors show: an estimator, then keywords.

    Args:
        options: Kinds of the options, by name.
        defaults: Values of those that may be left out; others are left out of account.
    """
    estimator = inspect.Parameter("estimator", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    keywords = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(name, inspect.Parameter.empty),
        )
        for name in options
    ]
    return inspect.Signature([estimator, *keywords])


def complete(
    attack: str,
    options: Mapping[str, Option],
    defaults: Mapping[str, Any],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the values given, with the defaults of those that were left out.

    Args:
        attack: Name of the attack, for the message.
        options: Kinds of the options, by name.
        defaults: Values of those that may be left out; others are left out of account.
        given: Values by name.

    Raises:
        SfmError: If one that has no default is missing.
    """
    values = {name: value for name, value in defaults.items() if name in options} | dict(given)
    for name, option in options.items():
        if name not in values:
            raise SfmError(f"Missing {name} of {attack}; expected {option.expected}.")
    return values
