"""Colour bit depth squeezing (Xu et al. 2018; Yu et al. 2022, section 5.3)."""

import math

import tensorflow as tf

SLOPE_VARIATION = 0.5


def squeeze_bit_depth(images: tf.Tensor, bits: int) -> tf.Tensor:
    """Rounds every value to the nearest of `2**bits` evenly spaced levels.

    `rint(x * (2^bits - 1)) / (2^bits - 1)`, halves to even, as in Xu et al., "Feature squeezing",
    2018, and its published code. Section 5.3 of Yu et al. prints the factor as 2^(i-1): a misprint
    of 2^i - 1, since i bits hold 2^i levels and the paper itself "subtracts 1".

    Args:
        images: float32 in [0, 1], any shape.
        bits: Bits per channel, at least 1; one bit leaves the values 0 and 1.

    Returns:
        float32 in [0, 1], same shape as `images`.
    """
    steps = float(2**bits - 1)
    return tf.math.rint(images * steps) / steps


def squeeze_bit_depth_smoothly(images: tf.Tensor, bits: int) -> tf.Tensor:
    """Bends the identity towards the staircase of `squeeze_bit_depth`.

    `x - v * sin(2 pi n x) / (2 pi n)` with n = 2^bits - 1 is the identity plus the first harmonic
    of the rounding error, damped by v = 1/2. It meets the staircase at every level and at every
    threshold; its slope is steepest at the thresholds and stays within [1/2, 3/2], so that an
    attack has a gradient even at the levels, where already squeezed pixels lie.

    Args:
        images: float32 in [0, 1], any shape.
        bits: Bits per channel, at least 1.

    Returns:
        float32 in [0, 1], same shape as `images`.
    """
    frequency = 2.0 * math.pi * (2**bits - 1)
    return images - SLOPE_VARIATION * tf.sin(frequency * images) / frequency
