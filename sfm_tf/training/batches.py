"""Batches of images. In training they follow from seed, epoch and step, so it can be resumed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError

_SIDE_PER_PADDING = 8
"""Images are padded by an eighth of their side: the customary 4 pixels for 32."""


class _Draws(NamedTuple):
    """Random draws for images `start` to `start + count - 1` of a batch of `total` images.

    They do not depend on how the batch is split among devices.
    """

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
        start: Position of the first image in the batch that the seed belongs to.
        total: Number of images in that batch; None if these are all.

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


def training_batches(
    images: tf.Tensor,
    labels: tf.Tensor,
    *,
    batch_size: int,
    augmentation: str,
    seed: int,
    epoch: int,
    first_step: int = 0,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Returns one epoch of shuffled, augmented batches, or what is left of it.

    The order and the augmentation depend on `(seed, epoch)` alone, not on epochs that went before
    or on the number of devices: a training resumed at a step sees what an uninterrupted one sees.

    Args:
        images: Float32 in [0, 1], shape `(count, height, width, channels)`. A tensor in host memory
            is used in place; a NumPy array is copied.
        labels: Integers of shape `(count,)`.
        batch_size: Images per batch, on all devices together.
        augmentation: `none`, `crop` or `crop_flip`.
        seed: Seed of the training.
        epoch: Number of this pass over the images, from 0.
        first_step: Number of batches to skip.
        context: Devices that split each batch, and which of them belong to this process; None for
            one device.

    Returns:
        Dataset of `(images, labels)`: for each batch the parts of this process's devices, in turn.
        All batches are full. The remaining images are not used in this epoch, unless there are
        fewer than one batch.
    """
    with tf.device("/CPU:0"):
        images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
    context = tf.distribute.InputContext() if context is None else context
    devices = context.num_replicas_in_sync
    own_devices = devices // context.num_input_pipelines
    first = context.input_pipeline_id * own_devices
    count = int(images.shape[0])
    size = min(batch_size, count)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    # (steps, devices, images of a device)
    order = order[: size * (count // size)].reshape(-1, devices, size // devices)
    own = order[first_step:, first : first + own_devices]
    numbers = np.arange(first_step, len(order)).repeat(own_devices)
    starts = (first + np.arange(own_devices, dtype=np.int32)) * order.shape[2]

    def take(number: tf.Tensor, start: tf.Tensor, indices: tf.Tensor) -> tuple:
        batch_seed = tf.random.experimental.stateless_fold_in([seed, epoch], number)
        batch = augment(tf.gather(images, indices), augmentation, batch_seed, start, size)
        return batch, tf.gather(labels, indices)

    slices = (numbers, np.tile(starts, len(own)), own.reshape(-1, order.shape[2]))
    dataset = tf.data.Dataset.from_tensor_slices(slices)
    return dataset.map(take, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def training_steps(count: int, batch_size: int) -> int:
    """Returns how many batches `training_batches` yields for `count` images."""
    return max(1, count // batch_size)


def evaluation_batches(images: tf.Tensor, labels: tf.Tensor, batch_size: int) -> tf.data.Dataset:
    """Returns all images once, in order, in batches of `(images, labels)`."""
    with tf.device("/CPU:0"):
        dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)
