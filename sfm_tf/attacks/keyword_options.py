"""A constructor made of the table of an attack's options."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_options import Option
from sfm_tf.errors import SfmError


class KeywordOptions:
    """Gives a `CompiledAttack` its options as keywords; put it before that among the bases.

    A class lists its `options`, and in `defaults` the values of those that may be left out. They
    are the signature that `help` and editors show.
    """

    options: ClassVar[Mapping[str, Option]]
    defaults: ClassVar[Mapping[str, Any]] = {
        "norm": math.inf,
        "targeted": False,
        "batch_size": 128,
        "seed": 0,
    }

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Declares the options to ART and as the signature of the class."""
        super().__init_subclass__(**arguments)
        cls.attack_params = list(cls.options)
        estimator = inspect.Parameter("estimator", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        cls.__signature__ = inspect.Signature(
            [estimator, *(_keyword(name, cls.defaults) for name in cls.options)]
        )

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Sets the options.

        Raises:
            SfmError: If the classifier or an option is not fit for the attack, or one is missing.
        """
        defaults = {name: value for name, value in self.defaults.items() if name in self.options}
        given = {**defaults, **options}
        for name, option in self.options.items():
            if name not in given:
                raise SfmError(
                    f"Missing {name} of {type(self).__name__}; expected {option.expected}."
                )
        super().__init__(estimator, **given)


def _keyword(name: str, defaults: Mapping[str, Any]) -> inspect.Parameter:
    default = defaults.get(name, inspect.Parameter.empty)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
