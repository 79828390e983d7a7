"""Batches of images: for training a pure function of seed and epoch, so that it can be resumed."""

import numpy as np
import tensorflow as tf

from sfm_tf.training.augmentation import augment


def training_batches(
    images: tf.Tensor,
    labels: tf.Tensor,
    *,
    batch_size: int,
    augmentation: str,
    seed: int,
    epoch: int,
) -> tf.data.Dataset:
    """Returns one epoch of shuffled, augmented batches.

    The order and the augmentation depend on `(seed, epoch)` alone, not on epochs that went before:
    a training resumed at an epoch sees what an uninterrupted one sees.

    Args:
        images: Float32 in [0, 1], shape `(count, height, width, channels)`. A tensor in host memory
            is used in place; a NumPy array is copied.
        labels: Integers of shape `(count,)`.
        batch_size: Images per batch.
        augmentation: `none`, `crop` or `crop_flip`.
        seed: Seed of the training.
        epoch: Number of this pass over the images, from 0.

    Returns:
        Dataset of `(images, labels)` batches. All are full, the images left over are not seen in
        this epoch, unless there is less than one batch of them.
    """
    with tf.device("/CPU:0"):
        images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
    count = int(images.shape[0])
    order = np.random.default_rng((seed, epoch)).permutation(count)

    def take(number: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch_seed = tf.random.experimental.stateless_fold_in([seed, epoch], number)
        batch = augment(tf.gather(images, indices), augmentation, batch_seed)
        return batch, tf.gather(labels, indices)

    indices = tf.data.Dataset.from_tensor_slices(order)
    indices = indices.batch(batch_size, drop_remainder=count >= batch_size).enumerate()
    return indices.map(take, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def training_steps(count: int, batch_size: int) -> int:
    """Returns how many batches `training_batches` yields for `count` images."""
    return max(1, count // batch_size)


def evaluation_batches(images: tf.Tensor, labels: tf.Tensor, batch_size: int) -> tf.data.Dataset:
    """Returns all images once, in order, in batches of `(images, labels)`."""
    with tf.device("/CPU:0"):
        dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)
