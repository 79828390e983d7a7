"""One kind of image operation that a chain can name: its function, stand-in and parameters."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from sfm_tf.errors import SfmError


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
    """What one kind of operation computes, its smooth stand-in and its parameters.

    Attributes:
        forward: From images, float32 of shape `(batch, height, width, channels)` in [0, 1], and the
            values of the parameters to images of the same shape. A random operation takes seeds
            between the two, int32 of shape `(batch, 2)`, a pair for each image.
        smooth: Takes the same; its gradient stands in for that of `forward` where asked for.
        parameters: In the order of the operation's name.
        is_random: Whether it takes seeds.
        draws_if: Tells from the values of the parameters whether it draws anything with them.
        quantises: Whether it picks one of a few values, so that a change below their distance can
            tip the choice: levels, or patches.
        content: Digest of what was fitted, such as weights; empty where nothing was.
    """

    forward: Callable[..., tf.Tensor]
    smooth: Callable[..., tf.Tensor]
    parameters: tuple[Parameter, ...]
    is_random: bool = False
    draws_if: Callable[..., bool] = lambda *values: True
    quantises: bool = False
    content: str = ""

    def form(self, name: str) -> str:
        """Spells the operation with the parameters it takes, e.g. `median_WINDOW`."""
        return "_".join([name, *(parameter.name.upper() for parameter in self.parameters)])

    def allows(self, values: list[int]) -> bool:
        """Tells whether there are as many `values` as parameters, each in its range."""
        return len(values) == len(self.parameters) and all(
            map(Parameter.allows, self.parameters, values)
        )


def static_image_shape(images: tf.Tensor) -> tuple[int, int, int]:
    """Reads height, width and channels; the batch may stay unknown.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`.

    Returns:
        Height and width in pixels, and the number of channels.

    Raises:
        SfmError: If `images` is not such a tensor, or one of the three is unknown.
    """
    shape = tf.TensorShape(images.shape)
    if shape.rank != 4 or None in shape[1:].as_list():
        raise SfmError(
            f"Cannot pre-process images of shape {shape}; expected (batch, height, width, "
            "channels) with a fixed height, width and number of channels."
        )
    return tuple(shape[1:].as_list())
