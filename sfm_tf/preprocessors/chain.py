"""Chains of image operations by name: the pre-processing T, and the defences compared with it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import TypeAlias

import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.bit_depth import squeeze_bit_depth, squeeze_bit_depth_smoothly
from sfm_tf.preprocessors.bpda import ImageFunction, with_surrogate_gradient
from sfm_tf.preprocessors.draws import Draws, KeyedDraws
from sfm_tf.preprocessors.jpeg_compression import compress_jpeg, compress_jpeg_smoothly
from sfm_tf.preprocessors.local_median import filter_local_mean, filter_local_median
from sfm_tf.preprocessors.non_local_means import (
    denoise_non_local_means,
    denoise_non_local_means_smoothly,
)
from sfm_tf.preprocessors.operation import Operation, Parameter
from sfm_tf.preprocessors.total_variation import (
    minimise_total_variation,
    minimise_total_variation_smoothly,
)

SURROGATES = ("identity", "smooth")

OPERATIONS: Mapping[str, Operation] = {
    "bit_depth": Operation(
        squeeze_bit_depth,
        squeeze_bit_depth_smoothly,
        (Parameter("bits", 1, 8),),
        quantises=True,
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
        quantises=True,
    ),
    "jpeg": Operation(
        compress_jpeg, compress_jpeg_smoothly, (Parameter("quality", 1, 100),), quantises=True
    ),
    "total_variation": Operation(
        minimise_total_variation,
        minimise_total_variation_smoothly,
        # Without a single kept value there would be nothing to go by.
        (Parameter("dropped", 0, 95), Parameter("weight", 1, 1000)),
        is_random=True,
        draws_if=lambda dropped, weight: dropped > 0,
    ),
}
"""The operations that need nothing but the images."""

_Step: TypeAlias = tuple[Operation, tuple[int, ...]]
"""An operation and the values of its parameters."""


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """A chain of image operations: a callable of images, made by `parse_preprocessor`.

    Attributes:
        spec: The name it was parsed from, e.g. `bit_depth_4+median_2`; parsing it again gives an
            equal preprocessor.
        surrogate: Gradient that stands in for that of each operation, `identity` or `smooth`.
        draws: Where random choices come from, if an operation is random; by default a keyed hash of
            the images, with the public key.
        steps: The operations.
    """

    spec: str
    surrogate: str
    draws: Draws = KeyedDraws()
    steps: tuple[_Step, ...] = dataclasses.field(compare=False, repr=False, default=())

    def __call__(self, images: tf.Tensor, drawn_from: tf.Tensor | None = None) -> tf.Tensor:
        """Applies the operations from left to right.

        Args:
            images: float of shape `(batch, height, width, channels)` in [0, 1]; the batch may be
                unknown or empty.
            drawn_from: Images that the random choices are drawn from: what a caller's are made of,
                so that a rounding on the way changes no draw. By default `images`.

        Returns:
            float32 in [0, 1], same shape as `images`.
        """
        images = tf.cast(images, tf.float32)
        source = images if drawn_from is None else drawn_from
        unused = tf.zeros([tf.shape(images)[0], 2], tf.int32)
        seeds = self.draws.seeds(source) if self.is_random else unused
        for operation, values in self.steps:
            images = _apply(operation, values, seeds, self.surrogate, images)
        return images

    @property
    def is_random(self) -> bool:
        """Whether an operation draws."""
        return any(
            operation.is_random and operation.draws_if(*values) for operation, values in self.steps
        )

    @property
    def quantises(self) -> bool:
        """Whether an operation picks one of a few values."""
        return any(operation.quantises for operation, _ in self.steps)

    @property
    def content(self) -> str:
        """Digests of what its operations were fitted to; empty where nothing was."""
        return "+".join(operation.content for operation, _ in self.steps if operation.content)

    def for_attacker(self) -> "Preprocessor":
        """Returns what an attacker faces: the same, with other draws if nobody knows the next."""
        return self.with_draws(self.draws.for_attacker())

    def with_draws(self, draws: Draws) -> "Preprocessor":
        """Returns the same operations with random choices from elsewhere; itself without any."""
        is_other = self.is_random and draws != self.draws
        return dataclasses.replace(self, draws=draws) if is_other else self

    def with_surrogate(self, surrogate: str) -> "Preprocessor":
        """Returns the same operations with another stand-in for their gradients.

        Raises:
            SfmError: If there is no such surrogate.
        """
        if surrogate not in SURROGATES:
            raise SfmError(
                f"Unknown surrogate {surrogate!r}; expected one of {', '.join(SURROGATES)}."
            )
        return dataclasses.replace(self, surrogate=surrogate)


def parse_preprocessor(
    spec: str, surrogate: str = "identity", fitted: Mapping[str, Operation] | None = None
) -> Preprocessor:
    """Makes the chain that `spec` names (Yu et al. 2022, section 5.3).

    Args:
        spec: `none`, or operations joined by `+` and applied from left to right, each a name and
            its whole-number parameters joined by `_`, such as `bit_depth_4` or `median_2`; the
            names are those of `OPERATIONS` and of `fitted`.
        surrogate: Gradient of every operation: `identity` for the straight-through one, `smooth`
            for that of its differentiable approximation.
        fitted: Further operations by name: those that were fitted to data or to a classifier.

    Returns:
        The callable pre-processing.

    Raises:
        SfmError: If an operation or the surrogate is unknown, or a parameter is out of range.
    """
    table = {**OPERATIONS, **(fitted or {})}
    steps = tuple(_parse_operation(name, table) for name in split_chain(spec))
    return Preprocessor(spec, "identity", steps=steps).with_surrogate(surrogate)


def split_chain(spec: str) -> tuple[str, ...]:
    """Returns the specifications of the single operations of a chain."""
    return () if spec == "none" else tuple(spec.split("+"))


def operation_name(spec: str) -> str:
    """Returns the name in the specification of one operation: `median` of `median_2`."""
    return _split_parameters(spec)[0]


def _split_parameters(spec: str) -> tuple[str, list[int]]:
    match = re.fullmatch(r"([a-z][a-z_]*?)((?:_-?\d+)*)", spec)
    if match is None:
        return spec, []
    return match.group(1), [int(digits) for digits in match.group(2).split("_")[1:]]


def _parse_operation(spec: str, table: Mapping[str, Operation]) -> _Step:
    name, values = _split_parameters(spec)
    if name not in table:
        known = ", ".join(operation.form(name) for name, operation in table.items())
        raise SfmError(
            f"Unknown preprocessor {spec!r}; expected none, or a chain joined by '+' of {known}."
        )
    operation = table[name]
    if not operation.allows(values):
        limits = ", ".join(parameter.describe() for parameter in operation.parameters)
        form = operation.form(name)
        raise SfmError(f"Invalid preprocessor {spec!r}; expected {form} with {limits}.")
    return operation, tuple(values)


def _apply(
    operation: Operation,
    values: tuple[int, ...],
    seeds: tf.Tensor,
    surrogate: str,
    images: tf.Tensor,
) -> tf.Tensor:
    drawn = (seeds,) if operation.is_random else ()
    stand_ins: Mapping[str, ImageFunction] = {
        "identity": tf.identity,
        "smooth": lambda images: operation.smooth(images, *drawn, *values),
    }
    forward = with_surrogate_gradient(
        lambda images: operation.forward(images, *drawn, *values), stand_ins[surrogate]
    )
    return forward(images)
