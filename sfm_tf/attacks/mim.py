"""The momentum iterative method."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from sfm_tf.attacks.attack import NOT_NEGATIVE, Option
from sfm_tf.attacks.pgd import IteratedGradientAttack

_IMAGE_AXES = (1, 2, 3)


class Momentum(NamedTuple):
    """What the method carries from step to step.

    Attributes:
        decay: Float32 scalar: the share of the velocity that a step keeps.
        velocity: Float32 of the images' shape: g of Dong et al. 2018, Eq. 6.
    """

    decay: tf.Tensor
    velocity: tf.Tensor


class MomentumIterativeMethod(IteratedGradientAttack):
    """Projected steps along a running sum of normalised gradients: MIM, or MI-FGSM.

    Dong et al., "Boosting adversarial attacks with momentum", 2018, Algorithm 1:

        g <- momentum * g + gradient / ||gradient||_1        (Eq. 6, the norm of each image)

    Implementations that divide by the mean of |gradient| instead have every g larger by one
    factor, the number of values in an image, and so step the same way: only the sign of g counts,
    and in L2 its direction. The same images as ART's `MomentumIterativeMethod`, which ART 1.20
    refuses to run on a TensorFlow classifier unless it has a preprocessor that is not
    TensorFlow's. The paper steps by epsilon / iterations.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        momentum: Share of g kept from step to step, mu in the paper; 0 makes this PGD.
        **options: Those of `IteratedGradientAttack`.
    """

    options: ClassVar[Mapping[str, Option]] = {
        **IteratedGradientAttack.options,
        "momentum": NOT_NEGATIVE,
    }
    defaults: ClassVar[Mapping[str, Any]] = {**IteratedGradientAttack.defaults, "momentum": 1.0}

    momentum: float

    def _initial_memory(self, images: tf.Tensor) -> Momentum:
        return Momentum(tf.constant(self.momentum, tf.float32), tf.zeros_like(images))

    def _search_direction(
        self, gradient: tf.Tensor, memory: Momentum
    ) -> tuple[tf.Tensor, Momentum]:
        # The sum, unlike the mean, cannot underflow where the gradient itself does not.
        size = tf.reduce_sum(tf.abs(gradient), axis=_IMAGE_AXES, keepdims=True)
        normalised = tf.math.divide_no_nan(gradient, size)
        velocity = memory.decay * memory.velocity + normalised
        return velocity, memory._replace(velocity=velocity)
