"""Batches of images: for training a pure function of seed and epoch, so that it can be resumed."""

import dataclasses

import numpy as np
import tensorflow as tf

from sfm_tf.training.augmentation import augment


@dataclasses.dataclass(frozen=True)
class Shares:
    """How each batch is shared among the devices.

    Attributes:
        total: Devices in all.
        first: Which share is the first of this process.
        count: How many are.
    """

    total: int = 1
    first: int = 0
    count: int = 1


def training_batches(
    images: tf.Tensor,
    labels: tf.Tensor,
    *,
    batch_size: int,
    augmentation: str,
    seed: int,
    epoch: int,
    first_step: int = 0,
    shares: Shares | None = None,
) -> tf.data.Dataset:
    """Returns one epoch of shuffled, augmented batches, or what is left of it.

    The order and the augmentation depend on `(seed, epoch)` alone, not on epochs that went before
    or on the number of devices: a training resumed at a step sees what an uninterrupted one sees.

    Args:
        images: Float32 in [0, 1], shape `(count, height, width, channels)`. A tensor in host memory
            is used in place; a NumPy array is copied.
        labels: Integers of shape `(count,)`.
        batch_size: Images per batch, of all shares together.
        augmentation: `none`, `crop` or `crop_flip`.
        seed: Seed of the training.
        epoch: Number of this pass over the images, from 0.
        first_step: Batches to leave out.
        shares: How a batch is shared; None for whole batches.

    Returns:
        Dataset of `(images, labels)`: of each batch the shares of this process, in turn. All
        batches are full, the images left over are not seen in this epoch, unless there is less than
        one batch of them.
    """
    with tf.device("/CPU:0"):
        images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
    shares = Shares() if shares is None else shares
    count = int(images.shape[0])
    size = min(batch_size, count)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    # (steps, shares, images of a share)
    order = order[: size * (count // size)].reshape(-1, shares.total, size // shares.total)
    own = order[first_step:, shares.first : shares.first + shares.count]
    numbers = np.arange(first_step, len(order)).repeat(shares.count)
    starts = (shares.first + np.arange(shares.count, dtype=np.int32)) * order.shape[2]

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
