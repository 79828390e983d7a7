"""Random augmentation of batches, a pure function of the seed and of the place in the batch."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from sfm_tf.errors import SfmError

_SIDE_PER_PADDING = 8
"""Images are padded by an eighth of their side: the customary 4 pixels for 32."""


class _Draws(NamedTuple):
    """What decides the draws: the seed of a batch, and which of its images these are."""

    seed: tf.Tensor
    start: tf.Tensor | int
    total: tf.Tensor | int

    def integers(self, stop: int, count: tf.Tensor) -> tf.Tensor:
        """Returns one integer from 0 to `stop - 1` for each of `count` images."""
        drawn = tf.random.stateless_uniform([self.total], self.seed, 0, stop, tf.int32)
        return drawn[self.start : self.start + count]


def _window(values: tf.Tensor, offsets: tf.Tensor, size: int, axis: int) -> tf.Tensor:
    """Takes `size` consecutive rows or columns from each image, starting at its own offset."""
    indices = offsets[:, tf.newaxis] + tf.range(size)[tf.newaxis]
    return tf.gather(values, indices, axis=axis, batch_dims=1)


def _crop(images: tf.Tensor, draws: _Draws) -> tf.Tensor:
    """Shifts each image by up to an eighth of its side, black moving in."""
    batch, (height, width) = tf.shape(images)[0], images.shape[1:3]
    for axis, size in ((1, height), (2, width)):
        padding = max(1, size // _SIDE_PER_PADDING)
        paddings = [[padding, padding] if axis == other else [0, 0] for other in range(4)]
        seed = tf.random.experimental.stateless_fold_in(draws.seed, axis)
        offsets = draws._replace(seed=seed).integers(2 * padding + 1, batch)
        images = _window(tf.pad(images, paddings), offsets, size, axis)
    return images


def _flip(images: tf.Tensor, draws: _Draws) -> tf.Tensor:
    """Mirrors each image left to right with probability one half."""
    is_flipped = draws.integers(2, tf.shape(images)[0]) == 0
    return tf.where(is_flipped[:, None, None, None], images[:, :, ::-1], images)


_STEPS: dict[str, tuple[Callable[[tf.Tensor, _Draws], tf.Tensor], ...]] = {
    "none": (),
    "crop": (_crop,),
    "crop_flip": (_crop, _flip),
}


def augment(
    images: tf.Tensor,
    augmentation: str,
    seed: tf.Tensor,
    start: tf.Tensor | int = 0,
    total: tf.Tensor | int | None = None,
) -> tf.Tensor:
    """Returns the images, each changed at random.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`; height and width are static.
        augmentation: `none`, `crop` or `crop_flip`.
        seed: Integer tensor of shape `(2,)`; the same seed gives the same images.
        start: Place of the first image in the batch that the seed is of.
        total: Images in that batch; None if these are all.

    Raises:
        SfmError: If there is no such augmentation.
    """
    if augmentation not in _STEPS:
        raise SfmError(
            f"Unknown augmentation {augmentation!r}; expected one of {', '.join(_STEPS)}."
        )
    for index, step in enumerate(_STEPS[augmentation]):
        step_seed = tf.random.experimental.stateless_fold_in(seed, 100 + index)
        whole = tf.shape(images)[0] if total is None else total
        images = step(images, _Draws(step_seed, start, whole))
    return images
