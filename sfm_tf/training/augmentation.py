"""Random augmentation of whole batches, a pure function of its seed."""

from collections.abc import Callable

import tensorflow as tf

from sfm_tf.errors import SfmError

_SIDE_PER_PADDING = 8
"""Images are padded by an eighth of their side: the customary 4 pixels for 32."""


def _window(values: tf.Tensor, offsets: tf.Tensor, size: int, axis: int) -> tf.Tensor:
    """Takes `size` consecutive rows or columns from each image, starting at its own offset."""
    indices = offsets[:, tf.newaxis] + tf.range(size)[tf.newaxis]
    return tf.gather(values, indices, axis=axis, batch_dims=1)


def _crop(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Shifts each image by up to an eighth of its side, black moving in."""
    batch, (height, width) = tf.shape(images)[0], images.shape[1:3]
    for axis, size in ((1, height), (2, width)):
        padding = max(1, size // _SIDE_PER_PADDING)
        paddings = [[padding, padding] if axis == other else [0, 0] for other in range(4)]
        offsets = tf.random.stateless_uniform(
            [batch],
            tf.random.experimental.stateless_fold_in(seed, axis),
            maxval=2 * padding + 1,
            dtype=tf.int32,
        )
        images = _window(tf.pad(images, paddings), offsets, size, axis)
    return images


def _flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors each image left to right with probability one half."""
    is_flipped = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed) < 0.5
    return tf.where(is_flipped, images[:, :, ::-1], images)


_STEPS: dict[str, tuple[Callable[[tf.Tensor, tf.Tensor], tf.Tensor], ...]] = {
    "none": (),
    "crop": (_crop,),
    "crop_flip": (_crop, _flip),
}


def augment(images: tf.Tensor, augmentation: str, seed: tf.Tensor) -> tf.Tensor:
    """Returns the images, each changed at random.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`; height and width are static.
        augmentation: `none`, `crop` or `crop_flip`.
        seed: Integer tensor of shape `(2,)`; the same seed gives the same images.

    Raises:
        SfmError: If there is no such augmentation.
    """
    if augmentation not in _STEPS:
        raise SfmError(
            f"Unknown augmentation {augmentation!r}; expected one of {', '.join(_STEPS)}."
        )
    for index, step in enumerate(_STEPS[augmentation]):
        images = step(images, tf.random.experimental.stateless_fold_in(seed, 100 + index))
    return images
