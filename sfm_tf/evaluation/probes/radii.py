"""The radii that probes look at, beside those of the evaluation."""

import math

from scipy.special import gammaln

from sfm_tf.choices import PIXEL_LEVELS

LADDER = (0.25, 0.5, 1.0, 2.0)
"""Multiples of the largest evaluated radius."""

# A change of one half turns every image of values in [0, 1] into one and the same grey.
_GREY = 0.5


def huge_radius(norm: str, dimensions: int) -> float:
    """Returns a radius at which no classifier can be right more often than by guessing.

    Args:
        norm: `inf` or `2`.
        dimensions: Values of an image.

    Returns:
        Radius in 1/255 of a ball that holds, around every image, the grey of 1/2.
    """
    return PIXEL_LEVELS * _GREY * (1.0 if norm == "inf" else math.sqrt(dimensions))


def ladder_radii(epsilon: float, norm: str, dimensions: int) -> list[float]:
    """Returns radii in 1/255 that rise from a part of `epsilon` to the huge one.

    Args:
        epsilon: Largest evaluated radius, in 1/255.
        norm: `inf` or `2`.
        dimensions: Values of an image.
    """
    huge = huge_radius(norm, dimensions)
    return [*(share * epsilon for share in LADDER if share * epsilon < huge), huge]


def equal_volume_radius(epsilon: float, norm: str, dimensions: int) -> float:
    """Returns the radius at which the ball of the other norm has the same volume.

    A cube of half side r has the volume (2 r)^d, a ball of radius r in L2
    pi^(d/2) r^d / gamma(d/2 + 1). For CIFAR-10's 3072 values, 8/255 in L-infinity compares with
    0.84 in L2.

    Args:
        epsilon: Radius in the norm `norm`, in 1/255.
        norm: `inf` or `2`.
        dimensions: Values of an image.
    """
    unit_ball = 0.5 * dimensions * math.log(math.pi) - gammaln(0.5 * dimensions + 1.0)
    ratio = math.exp(math.log(2.0) - unit_ball / dimensions)
    return epsilon * ratio if norm == "inf" else epsilon / ratio
