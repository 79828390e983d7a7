"""The iterative method with diverse inputs."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from sfm_tf.attacks.attack_options import NOT_NEGATIVE, POSITIVE, Option
from sfm_tf.attacks.momentum_iterative import Momentum, MomentumIterativeMethod
from sfm_tf.attacks.shrinking import random_placements, shrink_and_pad

_PAPER_SHARE = 299 / 330
_PROBABILITY = Option(
    lambda value: NOT_NEGATIVE.is_valid(value) and value <= 1, "a number from 0 to 1"
)
_SHARE = Option(
    lambda value: POSITIVE.is_valid(value) and value < 1, "a number above 0 and below 1"
)


class DiverseMemory(NamedTuple):
    """Both options as float32 scalars, and the memory of the momentum iterative method."""

    probability: tf.Tensor
    smallest_share: tf.Tensor
    momentum: Momentum


class DiverseInputsMethod(MomentumIterativeMethod):
    """Takes each gradient at randomly shrunk and padded images: DI2-FGSM, and M-DI2-FGSM.

    Xie et al., "Improving transferability of adversarial examples with input diversity", 2019,
    section 3. In each step, with `probability`, the model is shown the image shrunk to a random
    size by nearest neighbours, at a random place in zeros. Where this departs from the paper's
    code:

    - The paper enlarges 299 pixels to 299 to 329 and pads to 330. These classifiers take one size
      only, so the image is shrunk by the same ratios, both axes to one share of 299/330 or more:
      to 29, 30 or 31 of 32 pixels, to 58, 59, ... or 63 of 64, each as likely as the others.
    - The code draws once per step for the whole batch; here every image has its own draws, from
      its own seed. So what an image becomes does not depend on the images beside it.
    - The code pads with zeros where zero is grey, images being in [-1, 1]; here zero is black.
    - The code never sets the image against the bottom or the right end; here every place counts.

    By default, with momentum 0, this is DI2-FGSM; with momentum 1 it is M-DI2-FGSM. The losses on
    the way are those of the views. What `keep_best` and `stop_when_fooled` compare, and what is
    reported, is the loss of the images, so either option shows the model the images, too, in every
    step.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        probability: How likely the model is shown a shrunk image rather than the image; p in the
            paper. At 0 this is the momentum iterative method.
        smallest_share: Smallest size of a view over the full size.
        **options: Those of `MomentumIterativeMethod`.
    """

    options: ClassVar[Mapping[str, Option]] = {
        **MomentumIterativeMethod.options,
        "probability": _PROBABILITY,
        "smallest_share": _SHARE,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **MomentumIterativeMethod.defaults,
        "momentum": 0.0,
        "probability": 0.5,
        "smallest_share": _PAPER_SHARE,
    }
    uniforms_per_view: ClassVar[int] = 4

    probability: float
    smallest_share: float

    def _initial_memory(self, images: tf.Tensor) -> DiverseMemory:
        return DiverseMemory(
            tf.constant(self.probability, tf.float32),
            tf.constant(self.smallest_share, tf.float32),
            super()._initial_memory(images),
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
        direction, momentum = super()._search_direction(gradient, memory.momentum)
        return direction, memory._replace(momentum=momentum)
