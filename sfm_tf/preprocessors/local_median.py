"""Local median filtering (Xu et al. 2018; Yu et al. 2022, section 5.3)."""

import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.operation import static_image_shape

Comparators = list[tuple[int, int]]


def filter_local_median(images: tf.Tensor, window: int) -> tf.Tensor:
    """Replaces every value by the median of the window around it, per channel.

    Equals `scipy.ndimage.median_filter(images, size=(1, window, window, 1), mode="reflect")`, which
    Xu et al. use: edges repeat the border pixel, an even window extends further up and left than
    down and right, and an even number of values has its upper median.

    Args:
        images: float32 of shape `(batch, height, width, channels)`.
        window: Height and width of the window in pixels, at least 2.

    Returns:
        float32, same shape as `images`.

    Raises:
        SfmError: If the images are too small for the window.
    """
    values = _window_values(images, window)
    rank = len(values) // 2
    for lower, upper in _selection_network(len(values), rank):
        pair = values[lower], values[upper]
        values[lower], values[upper] = tf.minimum(*pair), tf.maximum(*pair)
    return values[rank]


def filter_local_mean(images: tf.Tensor, window: int) -> tf.Tensor:
    """Replaces every value by the mean of the window that `filter_local_median` looks at.

    The mean is the smooth stand-in for the median: linear, and its gradient reaches all the pixels
    that can become the median.

    Args:
        images: float32 of shape `(batch, height, width, channels)`.
        window: Height and width of the window in pixels, at least 2.

    Returns:
        float32, same shape as `images`.

    Raises:
        SfmError: If the images are too small for the window.
    """
    values = _window_values(images, window)
    return tf.add_n(values) / len(values)


def _window_values(images: tf.Tensor, window: int) -> list[tf.Tensor]:
    before, after = window // 2, (window - 1) // 2
    height, width, _ = static_image_shape(images)
    if min(height, width) < before:
        raise SfmError(
            f"Images of {height}x{width} pixels are too small for median_{window}; "
            f"expected at least {before}x{before}."
        )
    margins = [[0, 0], [before, after], [before, after], [0, 0]]
    padded = tf.pad(images, margins, mode="SYMMETRIC")
    return [
        padded[:, row : row + height, column : column + width]
        for row in range(window)
        for column in range(window)
    ]


def _selection_network(count: int, rank: int) -> Comparators:
    """Lists the (lower, upper) exchanges that bring the value of `rank` to position `rank`.

    Whole-image minima and maxima in this order are several times faster than sorting the window
    of each pixel.
    """
    needed = {rank}
    selected: Comparators = []
    for lower, upper in reversed(_sorting_network(count)):
        if lower in needed or upper in needed:
            needed.update((lower, upper))
            selected.append((lower, upper))
    return selected[::-1]


def _sorting_network(count: int) -> Comparators:
    """Batcher's merge exchange sort (Knuth, The Art of Computer Programming 3, 5.2.2, M)."""
    comparators: Comparators = []
    largest = 1 << (count - 1).bit_length() - 1
    size = largest
    while size:
        partner, offset, distance = largest, 0, size
        while True:
            comparators += [
                (index, index + distance)
                for index in range(count - distance)
                if index & size == offset
            ]
            if partner == size:
                break
            distance, offset, partner = partner - size, size, partner // 2
        size //= 2
    return comparators
