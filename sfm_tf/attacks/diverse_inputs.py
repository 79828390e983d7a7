"""The iterative method with diverse inputs (DI2-FGSM)."""

import dataclasses
from typing import ClassVar, NamedTuple

import tensorflow as tf

from sfm_tf.attacks.attack import NOT_NEGATIVE, POSITIVE, ValueKind
from sfm_tf.attacks.mim import Momentum, MomentumIterativeMethod


def shrink_and_pad(images: tf.Tensor, sizes: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    """Shrinks each image by nearest neighbours and sets it in zeros of its former shape.

    Pixel centres are at half-integers, as in `tf.image.resize`: pixel i of `size` shows pixel
    floor((i + 1/2) * full / size) of the full one, the later of two that are equally near. The
    sizes are tensors and may differ from image to image; the shapes do not depend on them, so
    nothing compiles anew. The gradient reaches exactly the pixels that are shown.

    Args:
        images: Float32 of shape `(batch, height, width, channels)`.
        sizes: Int32 `(batch, 2)`: height and width to shrink to, 1 to the full size.
        offsets: Int32 `(batch, 2)`: rows above and columns to the left, 0 to full size - size.

    Returns:
        Float32 of the images' shape.
    """
    rows, in_rows = _source_indices(images.shape[1], sizes[:, 0], offsets[:, 0])
    columns, in_columns = _source_indices(images.shape[2], sizes[:, 1], offsets[:, 1])
    picked = tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    return tf.where(inside[..., None], picked, 0.0)


def _source_indices(
    full_size: int, sizes: tf.Tensor, offsets: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns which pixel each pixel shows along one axis, and whether it shows one at all."""
    positions = tf.range(full_size)[None] - offsets[:, None]
    inside = (positions >= 0) & (positions < sizes[:, None])
    # In integers, because the exact position is often an integer itself and floats may miss it.
    source = (2 * positions + 1) * full_size // (2 * sizes[:, None])
    return tf.where(inside, source, 0), inside


def random_placements(
    full_size: tuple[int, int], smallest_share: tf.Tensor, uniforms: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a random size and place for each row of `uniforms`.

    The size is uniform from round(smallest_share * full size) to the full size - 1; with a share
    of 299/330 that is 7 of 8 pixels, 29 to 31 of 32 and 58 to 63 of 64. Every place where it fits
    is equally likely.

    Args:
        full_size: Height and width of the images.
        smallest_share: Float32 scalar in (0, 1).
        uniforms: Float32 in [0, 1), shape `(batch, 3)`: for the size, which is one draw for both
            axes, the rows above and the columns to the left.

    Returns:
        Int32 sizes and offsets of shape `(batch, 2)`, for `shrink_and_pad`.
    """
    full = tf.constant(full_size, tf.int32)
    rounded = tf.cast(tf.round(smallest_share * tf.cast(full, tf.float32)), tf.int32)
    # An image of a single pixel stays as it is.
    smallest = tf.clip_by_value(rounded, 1, tf.maximum(full - 1, 1))
    sizes = smallest + _random_integers(uniforms[:, :1], full - smallest)
    return sizes, _random_integers(uniforms[:, 1:], full - sizes + 1)


def _random_integers(uniforms: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.floor(uniforms * tf.cast(counts, tf.float32)), tf.int32)


_PAPER_SHARE = 299 / 330
_PROBABILITY = ValueKind(
    lambda value: NOT_NEGATIVE.is_valid(value) and value <= 1, "a number from 0 to 1"
)
_SHARE = ValueKind(
    lambda value: POSITIVE.is_valid(value) and value < 1, "a number above 0 and below 1"
)


class DiverseMemory(NamedTuple):
    """Both options as float32 scalars, and the memory of the momentum iterative method."""

    probability: tf.Tensor
    smallest_share: tf.Tensor
    momentum: Momentum


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
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

    momentum: float = 0.0
    probability: float = 0.5
    smallest_share: float = _PAPER_SHARE

    uniforms_per_view: ClassVar[int] = 4

    def _check_params(self) -> None:
        super()._check_params()
        self._check(_PROBABILITY, "probability")
        self._check(_SHARE, "smallest_share")

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
