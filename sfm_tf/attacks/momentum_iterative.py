"""The momentum iterative method."""

import math
from typing import ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_options import COUNT, FLAG, NOT_NEGATIVE, POSITIVE
from sfm_tf.attacks.gradient_attack import GradientAttack, Schedule

_IMAGE_AXES = (1, 2, 3)


class Momentum(NamedTuple):
    """What the method carries from step to step.

    Attributes:
        decay: Float32 scalar: the share of the velocity that a step keeps.
        velocity: Float32 of the images' shape: g of Dong et al. 2018, Eq. 6.
    """

    decay: tf.Tensor
    velocity: tf.Tensor

    def after(self, gradient: tf.Tensor) -> "Momentum":
        """Returns the momentum after a step in which `gradient` was found (Eq. 6)."""
        # The sum, unlike the mean, cannot underflow where the gradient itself does not.
        size = tf.reduce_sum(tf.abs(gradient), axis=_IMAGE_AXES, keepdims=True)
        normalised = tf.math.divide_no_nan(gradient, size)
        return Momentum(self.decay, self.decay * self.velocity + normalised)


def no_momentum(decay: float, images: tf.Tensor) -> Momentum:
    """Returns the momentum before the first step on `images`."""
    return Momentum(tf.constant(decay, tf.float32), tf.zeros_like(images))


class MomentumIterativeMethod(GradientAttack):
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
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        step_size: Norm of one step, in the units of the pixels.
        iterations: Number of steps.
        momentum: Share of g kept from step to step, mu in the paper; 0 makes this PGD.
        targeted: Whether labels are classes to reach rather than to leave.
        random_start: Whether to start at a random point of the ball.
        keep_best: Whether to return, per image, the iterate of the highest loss among those that
            fool the model, or among all where none does, in place of the last iterate.
        gradient_samples: Looks at each image that a gradient is the mean of; more than one only
            for a model that is random. The model is shown `batch_size` times as many images.
        batch_size: Images attacked at a time.
        loss: `cross_entropy` as ART computes it, or `stable_cross_entropy`, the same loss without
            the rounding that misleads an attack where the model is confident.
        seed: Seed of the random start.
    """

    options: ClassVar = {
        **GradientAttack.options,
        "step_size": POSITIVE,
        "iterations": COUNT,
        "momentum": NOT_NEGATIVE,
        "keep_best": FLAG,
        "gradient_samples": COUNT,
    }
    attack_params: ClassVar[list[str]] = list(options)

    step_size: float
    iterations: int
    momentum: float
    keep_best: bool

    def __init__(
        self,
        estimator: TensorFlowV2Classifier,
        *,
        norm: float | str = math.inf,
        epsilon: float,
        step_size: float,
        iterations: int,
        momentum: float = 1.0,
        targeted: bool = False,
        random_start: bool = False,
        keep_best: bool = False,
        gradient_samples: int = 1,
        loss: str = "cross_entropy",
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        """Sets the options."""
        super().__init__(
            estimator,
            norm=norm,
            epsilon=epsilon,
            step_size=step_size,
            iterations=iterations,
            momentum=momentum,
            targeted=targeted,
            random_start=random_start,
            keep_best=keep_best,
            gradient_samples=gradient_samples,
            loss=loss,
            batch_size=batch_size,
            seed=seed,
        )

    def _schedule(self) -> Schedule:
        return Schedule(self.step_size, self.iterations, self.keep_best)

    def _initial_memory(self, images: tf.Tensor) -> Momentum:
        return no_momentum(self.momentum, images)

    def _search_direction(
        self, gradient: tf.Tensor, memory: Momentum
    ) -> tuple[tf.Tensor, Momentum]:
        memory = memory.after(gradient)
        return memory.velocity, memory
