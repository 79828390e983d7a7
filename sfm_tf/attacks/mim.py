"""The momentum iterative method (MIM)."""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from sfm_tf.attacks.attack import NOT_NEGATIVE
from sfm_tf.attacks.pgd import GradientAttack


class Momentum(NamedTuple):
    """What the method carries from step to step.

    Attributes:
        mu: Float32 scalar: the share of g that a step keeps.
        g: Float32 of the images' shape: the accumulated gradient of Dong et al. 2018, Eq. 6.
    """

    mu: tf.Tensor
    g: tf.Tensor


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class MomentumIterativeMethod(GradientAttack):
    """Projected steps along a running sum of normalised gradients: MIM, or MI-FGSM.

    Dong et al., "Boosting adversarial attacks with momentum", 2018, Algorithm 1:

        g <- mu * g + gradient / ||gradient||_1        (Eq. 6, the norm of each image)

    Implementations that divide by the mean of |gradient| instead have every g larger by one
    factor, the number of values in an image, and so step the same way: only the sign of g counts,
    and in L2 its direction. The same images as ART's `MomentumIterativeMethod`, which ART 1.20
    refuses to run on a TensorFlow classifier unless it has a preprocessor that is not
    TensorFlow's. The paper steps by epsilon / iterations.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        momentum: Share of g kept from step to step, mu in the paper; 0 makes this PGD.
        **options: Those of `GradientAttack`.
    """

    momentum: float = 1.0

    def _check_params(self) -> None:
        super()._check_params()
        self._check(NOT_NEGATIVE, "momentum")

    def _initial_memory(self, images: tf.Tensor) -> Momentum:
        return Momentum(tf.constant(self.momentum, tf.float32), tf.zeros_like(images))

    def _search_direction(
        self, gradient: tf.Tensor, memory: Momentum
    ) -> tuple[tf.Tensor, Momentum]:
        # The sum, unlike the mean, cannot underflow where the gradient itself does not.
        size = tf.reduce_sum(tf.abs(gradient), axis=(1, 2, 3), keepdims=True)
        g = memory.mu * memory.g + tf.math.divide_no_nan(gradient, size)
        return g, memory._replace(g=g)
