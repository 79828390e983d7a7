"""Pre-processing T by name: single operations and chains of them."""

import dataclasses
import re
from collections.abc import Callable

import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.bit_depth import squeeze_bit_depth, squeeze_bit_depth_smoothly
from sfm_tf.preprocessors.local_median import filter_local_mean, filter_local_median
from sfm_tf.preprocessors.non_local_means import (
    denoise_non_local_means,
    denoise_non_local_means_smoothly,
)
from sfm_tf.preprocessors.surrogates import ImageFunction, with_surrogate_gradient

SURROGATES = ("identity", "smooth")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One number of an operation's name and the whole numbers it may take."""

    name: str
    minimum: int
    maximum: int
    odd: bool = False

    def describe(self) -> str:
        """Says in words which values are allowed."""
        parity = "an odd number" if self.odd else "a number"
        return f"{self.name} {parity} from {self.minimum} to {self.maximum}"

    def allows(self, value: int) -> bool:
        """Tells whether `value` is one of those."""
        return self.minimum <= value <= self.maximum and (value % 2 == 1 or not self.odd)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One kind of pre-processing: what it computes, its smooth stand-in and its parameters."""

    forward: Callable[..., tf.Tensor]
    smooth: Callable[..., tf.Tensor]
    parameters: tuple[Parameter, ...]

    def form(self, name: str) -> str:
        """Spells the operation with the parameters it takes, e.g. `median_WINDOW`."""
        return "_".join([name, *(parameter.name.upper() for parameter in self.parameters)])

    def allows(self, values: list[int]) -> bool:
        """Tells whether there are as many `values` as parameters, each in its range."""
        return len(values) == len(self.parameters) and all(
            map(Parameter.allows, self.parameters, values)
        )


OPERATIONS = {
    "bit_depth": Operation(
        squeeze_bit_depth, squeeze_bit_depth_smoothly, (Parameter("bits", 1, 8),)
    ),
    "median": Operation(filter_local_median, filter_local_mean, (Parameter("window", 2, 7),)),
    "non_local_means": Operation(
        denoise_non_local_means,
        denoise_non_local_means_smoothly,
        (
            Parameter("search", 3, 51, odd=True),
            Parameter("template", 1, 11, odd=True),
            Parameter("strength", 1, 255),
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """The pre-processing T: a callable of images, made by `parse_preprocessor`.

    Attributes:
        spec: The name it was parsed from, e.g. `bit_depth_4+median_2`; parsing it again gives an
            equal preprocessor.
        surrogate: Gradient that stands in for that of each operation, `identity` or `smooth`.
    """

    spec: str
    surrogate: str
    operations: tuple[ImageFunction, ...] = dataclasses.field(compare=False, repr=False)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Applies the operations from left to right.

        Args:
            images: float of shape `(batch, height, width, channels)` in [0, 1]; the batch may be
                unknown or empty.

        Returns:
            float32 in [0, 1], same shape as `images`.
        """
        images = tf.cast(images, tf.float32)
        for operation in self.operations:
            images = operation(images)
        return images


def parse_preprocessor(spec: str, surrogate: str = "identity") -> Preprocessor:
    """Makes the pre-processing that `spec` names (Yu et al. 2022, section 5.3).

    Args:
        spec: `none`, or operations joined by `+` and applied from left to right, each a name and
            its whole-number parameters joined by `_`: `bit_depth_BITS`, `median_WINDOW`,
            `non_local_means_SEARCH_TEMPLATE_STRENGTH`.
        surrogate: Gradient of every operation: `identity` for the straight-through one, `smooth`
            for that of its differentiable approximation.

    Returns:
        The callable pre-processing.

    Raises:
        SfmError: If an operation or the surrogate is unknown, or a parameter is out of range.
    """
    if surrogate not in SURROGATES:
        raise SfmError(f"Unknown surrogate {surrogate!r}; expected one of {', '.join(SURROGATES)}.")
    names = () if spec == "none" else spec.split("+")
    return Preprocessor(spec, surrogate, tuple(_parse_operation(name, surrogate) for name in names))


def _parse_operation(spec: str, surrogate: str) -> ImageFunction:
    match = re.fullmatch(r"([a-z][a-z_]*?)((?:_-?\d+)*)", spec)
    name = match.group(1) if match else spec
    if name not in OPERATIONS:
        known = ", ".join(operation.form(name) for name, operation in OPERATIONS.items())
        raise SfmError(
            f"Unknown preprocessor {spec!r}; expected none, or a chain joined by '+' of {known}."
        )
    operation = OPERATIONS[name]
    values = [int(digits) for digits in match.group(2).split("_")[1:]]
    if not operation.allows(values):
        limits = ", ".join(parameter.describe() for parameter in operation.parameters)
        form = operation.form(name)
        raise SfmError(f"Invalid preprocessor {spec!r}; expected {form} with {limits}.")

    def forward(images: tf.Tensor) -> tf.Tensor:
        return operation.forward(images, *values)

    def smooth(images: tf.Tensor) -> tf.Tensor:
        return operation.smooth(images, *values)

    return with_surrogate_gradient(forward, {"identity": tf.identity, "smooth": smooth}[surrogate])
