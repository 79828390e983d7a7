"""Restores the points of an image that a classifier is most sensitive to, and smooths the others.

The defence "Sensitivity" of Zhao, Wang, Sun, Yuan, Huang and He, "Removing adversarial noise via
low-rank completion of high-sensitivity points", IEEE Transactions on Image Processing 30, 2021. Its
abstract says what is done: the gradient with respect to the input divides the pixels into two
groups; those of low sensitivity are smoothed by total variation, those of high sensitivity are
replaced by an iterative, structure-preserving low-rank completion. There is no public code. What
the abstract leaves open is chosen here:

1. The gradient is that of the log-odds of the class that the classifier itself predicts for the
   incoming image, its logit minus the logsumexp of the others. It points where the gradient of the
   cross-entropy does but does not vanish where the classifier is certain.
2. A point is a pixel with all its channels. Its sensitivity is the Euclidean norm of the gradient
   over the channels, of one gradient at the image as it comes.
3. The `high_percent` % of the pixels with the largest norms are the high ones, rounded to a whole
   number and at least one; of equals the first in reading order.
4. High pixels are taken for missing: their values play no part in what follows, since they are
   where an attack moved the image to most effect.
5. Low pixels are the minimiser of `|y - x|^2 / 2 + SMOOTHING_WEIGHT * TV(x)`, where the first sum
   is over low pixels alone: the problem, norm and solver of the defence by total variation
   minimisation, channel by channel. The weight is 0.02: of 0.015 and 0.03, the usual one there, the
   first leaves less noise of 8/255 in CIFAR-10 images, the second less noise of 16/255.
6. The same minimiser at the high pixels, a continuation of edges from the low ones, is the first
   guess of the completion, which takes the smoothed low pixels as known.
7. The matrix that is completed has a row for each 4x4 patch of the image, overlapping and with its
   channels, after the mean of the low pixels was subtracted channel by channel. Its columns are
   shifted images; low rank says that a few patterns make up all patches, and so keeps structure.
   The mean of all patches that hold a pixel is its value. With the image itself as the matrix, or
   its channels side by side, holes in CIFAR-10 images come back 1 to 3 dB worse.
8. Completion is by `complete_low_rank`: rank 8, 15 iterations, a threshold that falls from 0.3 to
   0.01 of the norm. High pixels get its values, low ones stay smoothed, and all are clipped to
   [0, 1].

No image depends on the others of its batch, up to the rounding of matrix products.
"""

import functools

import keras
import tensorflow as tf

from sfm_tf.models.logit_losses import without_label
from sfm_tf.preprocessors.operation import Operation, Parameter, static_image_shape
from sfm_tf.preprocessors.total_variation import solve_total_variation

SMOOTHING_WEIGHT = 0.02
PATCH_SIZE = 4
PATCH_RANK = 8
COMPLETION_ITERATIONS = 15

_NEIGHBOURHOOD = 5
_FAR_SHARE = 1e-3
"""Weight of the whole image in a mean of neighbours; it matters if no low pixel is near."""

_START_SEEDS = (2021, 6485)
"""Any pair will do: the start must be generic and always the same."""

_SMALLEST_SCALE = 1e-6
"""Keeps the regressions of a matrix of zeros solvable; they then give zeros."""


def sensitivity_operation(classifier: keras.Model) -> Operation:
    """Returns the defence of one classifier, as an operation of a chain.

    Its `content` is empty: the classifier's weights are those of the model behind the chain.

    Args:
        classifier: Model from images to logits, shared with the caller, always in inference mode.
    """
    return Operation(
        functools.partial(remove_sensitive_points, classifier=classifier),
        functools.partial(average_sensitive_points, classifier=classifier),
        (Parameter("high_percent", 1, 50),),
    )


def remove_sensitive_points(
    images: tf.Tensor, high_percent: int, classifier: keras.Model
) -> tf.Tensor:
    """Completes the most sensitive pixels from the smoothed other ones; has no gradient.

    Args:
        images: float32 of shape `(batch, height, width, channels)` in [0, 1]; the batch may be
            unknown or empty.
        high_percent: Share of the pixels that are completed, in percent, 1 to 50.
        classifier: Model from images to logits of at least two classes.

    Returns:
        float32 in [0, 1], same shape as `images`.
    """
    images = tf.stop_gradient(images)
    high = find_sensitive_points(images, high_percent, classifier)
    smoothed = smooth_low_points(images, high)
    restored = tf.where(high, complete_high_points(smoothed, high), smoothed)
    return tf.stop_gradient(tf.clip_by_value(restored, 0.0, 1.0))


def average_sensitive_points(
    images: tf.Tensor, high_percent: int, classifier: keras.Model
) -> tf.Tensor:
    """Stands in for `remove_sensitive_points`: linear, once the pixels are chosen.

    Low pixels stay as they are, high ones become the mean of the low pixels in the 5x5 pixels
    around. The choice of the pixels is taken as given, as it is piecewise constant.

    Args:
        images: float32 of shape `(batch, height, width, channels)`.
        high_percent: Share of the pixels that are averaged, in percent, 1 to 50.
        classifier: Model from images to logits of at least two classes.

    Returns:
        float32, same shape as `images`.
    """
    high = find_sensitive_points(tf.stop_gradient(images), high_percent, classifier)
    return _fill_with_neighbours(images, high)


def find_sensitive_points(
    images: tf.Tensor, high_percent: int, classifier: keras.Model
) -> tf.Tensor:
    """Finds the pixels with the largest gradient of the predicted class' log-odds.

    Args:
        images: float32 of shape `(batch, height, width, channels)`.
        high_percent: Share of the pixels to find, in percent.
        classifier: Model from images to logits of at least two classes.

    Returns:
        bool of shape `(batch, height, width, 1)`: equally many are true in every image.
    """
    height, width, channels = static_image_shape(images)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = tf.cast(classifier(images, training=False), tf.float32)
        labels = tf.argmax(logits, axis=1)
        others = tf.reduce_logsumexp(without_label(logits, labels), axis=1)
        log_odds = tf.gather(logits, labels, batch_dims=1) - others
    gradients = tf.reshape(tape.gradient(log_odds, images), [-1, height * width, channels])
    gradients = tf.where(tf.math.is_finite(gradients), gradients, 0.0)
    # Squares of small gradients would underflow.
    largest = tf.reduce_max(tf.abs(gradients), axis=[1, 2], keepdims=True)
    norms = tf.norm(tf.math.divide_no_nan(gradients, largest), axis=2)
    high = _largest(norms, max(1, round(high_percent * height * width / 100)))
    return tf.stop_gradient(tf.reshape(high, [-1, height, width, 1]))


def _largest(values: tf.Tensor, count: int) -> tf.Tensor:
    """Marks exactly `count` values of each row, of equals the first."""
    smallest = tf.math.top_k(values, count).values[:, -1:]
    above, equal = values > smallest, tf.cast(values == smallest, tf.int32)
    room = count - tf.reduce_sum(tf.cast(above, tf.int32), axis=1, keepdims=True)
    return above | ((equal == 1) & (tf.cumsum(equal, axis=1) <= room))


def smooth_low_points(images: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Minimises total variation near the low pixels, and continues them (items 5 and 6 above).

    Args:
        images: float32 of shape `(batch, height, width, channels)`.
        high: bool of shape `(batch, height, width, 1)`: the pixels whose values play no part.

    Returns:
        float32, same shape as `images`.
    """
    low = tf.tile(tf.logical_not(high), [1, 1, 1, images.shape[3]])
    return solve_total_variation(images, tf.cast(low, tf.float32), SMOOTHING_WEIGHT)


def complete_high_points(images: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Completes images by a matrix of overlapping patches of low rank (items 7 and 8 above).

    Args:
        images: float32 of shape `(batch, height, width, channels)`; high pixels hold a first guess.
        high: bool of shape `(batch, height, width, 1)`: the pixels to complete.

    Returns:
        float32, same shape as `images`: low pixels as they are, up to rounding.
    """
    shape = static_image_shape(images)
    mean = _low_means(images, high)
    known = _patches(tf.tile(tf.logical_not(high), [1, 1, 1, shape[2]]))
    patches = _patches(images - mean)
    patches = complete_low_rank(patches, known, PATCH_RANK, COMPLETION_ITERATIONS)
    copies = _sum_patches(tf.ones_like(patches[:1]), shape)
    return mean + _sum_patches(patches, shape) / copies


def _patches(images: tf.Tensor) -> tf.Tensor:
    """Lays each patch out as a row, shape `(batch, patches, patch values)`."""
    height, width, channels = static_image_shape(images)
    size = min(PATCH_SIZE, height, width)
    rows, columns = height - size + 1, width - size + 1
    shifted = [
        images[:, top : top + rows, left : left + columns]
        for top in range(size)
        for left in range(size)
    ]
    return tf.reshape(tf.concat(shifted, axis=3), [-1, rows * columns, size**2 * channels])


def _sum_patches(patches: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """Adds the rows of `_patches` up where they came from, in images of that shape."""
    height, width, channels = shape
    size = min(PATCH_SIZE, height, width)
    after = size - 1
    grid = [-1, height - after, width - after, size**2 * channels]
    shifted = tf.split(tf.reshape(patches, grid), size**2, axis=3)
    margins = [(top, left) for top in range(size) for left in range(size)]
    return tf.add_n(
        [
            tf.pad(values, [[0, 0], [top, after - top], [left, after - left], [0, 0]])
            for values, (top, left) in zip(shifted, margins, strict=True)
        ]
    )


def _fill_with_neighbours(images: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Replaces high pixels by the mean of the low ones around, or of all where none is near."""
    low = 1.0 - tf.cast(high, tf.float32)
    sums = _window_means(low * images) + _FAR_SHARE * _low_means(images, high)
    return tf.where(high, sums / (_window_means(low) + _FAR_SHARE), images)


def _window_means(values: tf.Tensor) -> tf.Tensor:
    return tf.nn.avg_pool2d(values, _NEIGHBOURHOOD, strides=1, padding="SAME")


def _low_means(images: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Mean of each channel over the low pixels; zero without any."""
    low = 1.0 - tf.cast(high, tf.float32)
    count = tf.maximum(tf.reduce_sum(low, axis=[1, 2], keepdims=True), 1.0)
    return tf.reduce_sum(low * images, axis=[1, 2], keepdims=True) / count


def complete_low_rank(
    matrices: tf.Tensor,
    known: tf.Tensor,
    rank: int,
    iterations: int,
    first_threshold: float = 0.3,
    last_threshold: float = 0.01,
) -> tf.Tensor:
    """Replaces the entries that are not known by those of a matrix of low rank.

    Minimises `|known * (matrices - X)|^2 / 2 + threshold * |matrices|_F * |X|_*` over the matrices
    X of at most `rank`, where |.|_* is the sum of the singular values. The threshold falls
    geometrically from iteration to iteration, so that large structures settle first. Every matrix
    has its own scale, all go through the same number of iterations, and none sees another:
    neither the batch nor its size matters, up to the rounding of matrix products.

    Args:
        matrices: float32 of shape `(batch, rows, columns)`; what it holds where entries are not
            known is the first guess. Rows and batch may be unknown, and the batch empty.
        known: bool, same shape.
        rank: Largest rank of X, at least 1.
        iterations: Number of times that both factors of X are fitted, at least 1.
        first_threshold: What singular values shrink by in the first iteration, as a share of the
            Frobenius norm of the matrix.
        last_threshold: The same in the last one; above 0.

    Returns:
        float32, same shape as `matrices`: the known entries as they are, the others from X.
    """
    norms = tf.norm(matrices, axis=[1, 2], keepdims=True)
    scales = tf.maximum(norms, _SMALLEST_SCALE)
    decay = (last_threshold / first_threshold) ** (1.0 / max(iterations - 1, 1))

    def improve(
        index: tf.Tensor, right: tf.Tensor, filled: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        ridge = first_threshold * decay ** tf.cast(index, tf.float32) * scales
        left = tf.matmul(filled, _ridge_weights(right, ridge))
        right = tf.matmul(filled, _ridge_weights(left, ridge), transpose_a=True)
        low_rank = tf.matmul(left, right, transpose_b=True)
        return index + 1, right, tf.where(known, matrices, low_rank)

    _, _, filled = tf.while_loop(
        lambda index, *_: index < iterations,
        improve,
        (0, _start(matrices, rank, scales), matrices),
        parallel_iterations=1,
    )
    return filled


def _start(matrices: tf.Tensor, rank: int, scales: tf.Tensor) -> tf.Tensor:
    """Random right factors, the same for all matrices but for their scale."""
    columns = matrices.shape[2]
    directions = tf.random.stateless_normal([columns, rank], _START_SEEDS) / columns**0.5
    return tf.sqrt(scales) * directions


def _ridge_weights(factors: tf.Tensor, ridge: tf.Tensor) -> tf.Tensor:
    """Returns `F (F'F + ridge I)^-1`: what turns a matrix into the other factor."""
    rank = factors.shape[2]
    gram = tf.matmul(factors, factors, transpose_a=True) + ridge * tf.eye(rank)
    return tf.matmul(factors, tf.linalg.inv(gram))
