"""The iterative method with diverse inputs."""

import math
from typing import ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_options import COUNT, NOT_NEGATIVE, POSITIVE, Option
from sfm_tf.attacks.gradient_attack import GradientAttack, Schedule
from sfm_tf.attacks.momentum_iterative import Momentum, no_momentum
from sfm_tf.attacks.shrinking import random_placements, shrink_and_pad

_PAPER_SHARE = 299 / 330
_PROBABILITY = Option(
    lambda value: NOT_NEGATIVE.is_valid(value) and value <= 1, "a number from 0 to 1"
)
_SHARE = Option(
    lambda value: POSITIVE.is_valid(value) and value < 1, "a number above 0 and below 1"
)


class DiverseMemory(NamedTuple):
    """What the method carries from step to step.

    Attributes:
        probability: Float32 scalar: how likely a view is shrunk.
        smallest_share: Float32 scalar: smallest size of a view over the full size.
        momentum: That of the momentum iterative method.
    """

    probability: tf.Tensor
    smallest_share: tf.Tensor
    momentum: Momentum


class DiverseInputsMethod(GradientAttack):
    """Takes each gradient at randomly shrunk and padded images: DI2-FGSM, and M-DI2-FGSM.

    Xie et al., "Improving transferability of adversarial examples with input diversity", 2019,
    section 3. In each step, with `probability`, the model is shown the image shrunk to a random
    size by nearest neighbours, at a random place in zeros. Where this departs from the paper's
    code:

    - The paper enlarges 299 pixels to 299 to 329 and pads to 330. These classifiers take one size
      only, so the image is shrunk by the same ratios: see `random_placements`.
    - The code draws once per step for the whole batch; here every image has its own draws, from
      its own seed. So what an image becomes does not depend on the images beside it.
    - The code pads with zeros where zero is grey, images being in [-1, 1]; here zero is black.
    - The code never sets the image against the bottom or the right end; here every place counts.

    The result is the last iterate: the losses on the way are those of the random views, not of
    the images. The loss that is reported is that of the images.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        step_size: Norm of one step, in the units of the pixels.
        iterations: Number of steps.
        momentum: Share of the velocity kept from step to step: 0 for DI2-FGSM, 1 for M-DI2-FGSM.
        probability: How likely the model is shown a shrunk image rather than the image; p in the
            paper. At 0 this is the momentum iterative method.
        smallest_share: Smallest size of a view over the full size.
        targeted: Whether labels are classes to reach rather than to leave.
        random_start: Whether to start at a random point of the ball.
        gradient_samples: Views of each image that a gradient is the mean of. The model is shown
            `batch_size` times as many images.
        batch_size: Images attacked at a time.
        loss: `cross_entropy` as ART computes it, or `stable_cross_entropy`, the same loss without
            the rounding that misleads an attack where the model is confident.
        seed: Seed of the random start and of the views.
    """

    options: ClassVar = {
        **GradientAttack.options,
        "step_size": POSITIVE,
        "iterations": COUNT,
        "momentum": NOT_NEGATIVE,
        "probability": _PROBABILITY,
        "smallest_share": _SHARE,
        "gradient_samples": COUNT,
    }
    attack_params: ClassVar[list[str]] = list(options)
    uniforms_per_view: ClassVar[int] = 4

    step_size: float
    iterations: int
    momentum: float
    probability: float
    smallest_share: float

    def __init__(
        self,
        estimator: TensorFlowV2Classifier,
        *,
        norm: float | str = math.inf,
        epsilon: float,
        step_size: float,
        iterations: int,
        momentum: float = 0.0,
        probability: float = 0.5,
        smallest_share: float = _PAPER_SHARE,
        targeted: bool = False,
        random_start: bool = False,
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
            probability=probability,
            smallest_share=smallest_share,
            targeted=targeted,
            random_start=random_start,
            gradient_samples=gradient_samples,
            loss=loss,
            batch_size=batch_size,
            seed=seed,
        )

    def _schedule(self) -> Schedule:
        return Schedule(self.step_size, self.iterations, keep_best=False)

    def _initial_memory(self, images: tf.Tensor) -> DiverseMemory:
        return DiverseMemory(
            tf.constant(self.probability, tf.float32),
            tf.constant(self.smallest_share, tf.float32),
            no_momentum(self.momentum, images),
        )

    def _views(self, images: tf.Tensor, uniforms: tf.Tensor, memory: DiverseMemory) -> tf.Tensor:
        height, width = images.shape[1:3]
        sizes, offsets = random_placements((height, width), memory.smallest_share, uniforms[:, 1:])
        is_shrunk = uniforms[:, :1] < memory.probability
        # At its full size and no offset an image is itself, bit for bit.
        sizes = tf.where(is_shrunk, sizes, [[height, width]])
        return shrink_and_pad(images, sizes, tf.where(is_shrunk, offsets, 0))

    def _search_direction(
        self, gradient: tf.Tensor, memory: DiverseMemory
    ) -> tuple[tf.Tensor, DiverseMemory]:
        momentum = memory.momentum.after(gradient)
        return momentum.velocity, memory._replace(momentum=momentum)
