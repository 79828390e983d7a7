"""Weighted averages of the pixels around each pixel, shift by shift of the whole image."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

Planes = list[tf.Tensor]
Terms = list[tuple[tf.Tensor, ...]]
WeightFunction = Callable[[tf.Tensor], tf.Tensor]

# TensorFlow slices without copying only from multiples of 64 bytes, that is of 16 images. To fill
# up even a single image to as many costs less than the copies.
_ALIGNED_BATCH = 16


def average_similar_pixels(
    channels: tf.Tensor, search_window: int, template_window: int, weigh: WeightFunction
) -> tf.Tensor:
    """Averages each pixel with those in its search window, weighted by their similarity.

    Borders mirror the image without repeating its edge, as often as a window needs. Each pair of
    opposite shifts of the image takes one step of a loop, so that memory grows with the windows'
    widths only. Gradients are recomputed step by step and need no more.

    Args:
        channels: float32 of shape `(batch, height, width, channels)`.
        search_window: Height and width in pixels of the area averaged over; odd.
        template_window: Height and width in pixels of the surroundings compared; odd.
        weigh: Maps a float32 tensor of squared differences, summed over the pixels and channels
            of the template, to the weights; elementwise.

    Returns:
        float32, same shape as `channels`.
    """
    height, width = channels.shape[1:3]
    grid = _Grid(height, width, search_window // 2, template_window // 2)
    batch = tf.shape(channels)[0]
    pixels = tf.transpose(tf.reshape(channels, [batch, height * width, channels.shape[-1]]))
    pixels = tf.pad(pixels, [[0, 0], [0, 0], [0, -batch % _ALIGNED_BATCH]])
    planes = tf.unstack(tf.gather(pixels, grid.padded_positions(), axis=1))
    center = [_window(plane, grid.start, grid.count) for plane in planes]
    own_weight = weigh(tf.zeros_like(center[0]))
    weights, *totals = _sum_over_shifts(grid, weigh)(*planes)
    averages = [
        (total + own_weight * value) / (weights + own_weight)
        for total, value in zip(totals, center, strict=True)
    ]
    rows = tf.pad(tf.stack(averages), [[0, 0], [0, grid.stride - width], [0, 0]])
    rows = tf.reshape(rows, [len(planes), height, grid.stride, -1])
    return tf.transpose(rows[:, :, :width], [3, 1, 2, 0])[:batch]


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Images padded for all windows, as rows of pixels laid end to end.

    In this layout, whose last axis is the batch, a shift of the image is a shift along one axis,
    the first, which TensorFlow slices without copying. Positions in the padding between two rows
    are computed and dropped.
    """

    height: int
    width: int
    search_half: int
    template_half: int

    @property
    def border(self) -> int:
        return self.search_half + self.template_half

    @property
    def stride(self) -> int:
        return self.width + 2 * self.border

    @property
    def start(self) -> int:
        return self.border * (self.stride + 1)

    @property
    def count(self) -> int:
        return (self.height - 1) * self.stride + self.width

    @property
    def largest_offset(self) -> int:
        return self.search_half * (self.stride + 1)

    def offsets(self) -> list[int]:
        """One of each two opposite shifts of the search window, without the zero shift."""
        half = self.search_half
        rows = [row * self.stride for row in range(half + 1)]
        return [r + c for r in rows for c in range(-half, half + 1) if r + c > 0]

    def padded_positions(self) -> np.ndarray:
        """For each padded position the pixel it mirrors; borders are not repeated."""
        rows = np.pad(np.arange(self.height), self.border, mode="reflect")
        columns = np.pad(np.arange(self.width), self.border, mode="reflect")
        return (rows[:, np.newaxis] * self.width + columns).reshape(-1)

    def sum_templates(self, planes: Planes) -> tf.Tensor:
        """Sums over planes and over the template around each position that has all of it."""
        for step in (1, self.stride):
            reach = 2 * self.template_half * step
            remaining = planes[0].shape[0] - reach
            starts = range(0, reach + 1, step)
            planes = [tf.add_n([_window(plane, i, remaining) for plane in planes for i in starts])]
        return planes[0]


def _window(values: tf.Tensor, start: tf.Tensor | int, count: int) -> tf.Tensor:
    return tf.slice(values, [start, 0], [count, -1])


def _weigh_pair(grid: _Grid, weigh: WeightFunction, offset: tf.Tensor, planes: Planes) -> Terms:
    """Weights of the pixels `offset` before and after each pixel, and their weighted values."""
    farthest = grid.largest_offset
    length = grid.count + farthest + 2 * grid.template_half * (grid.stride + 1)
    differences = [
        tf.math.squared_difference(_window(plane, 0, length), _window(plane, offset, length))
        for plane in planes
    ]
    weights = weigh(grid.sum_templates(differences))
    # The pixel after p sees p as the pixel before it, at the same distance.
    after = _window(weights, farthest, grid.count)
    before = _window(weights, farthest - offset, grid.count)
    values = [
        (
            after * _window(plane, grid.start + offset, grid.count),
            before * _window(plane, grid.start - offset, grid.count),
        )
        for plane in planes
    ]
    return [(after, before), *values]


def _sum_over_shifts(grid: _Grid, weigh: WeightFunction) -> Callable[..., Planes]:
    """Makes a function of padded planes: the sums of `_weigh_pair` over all offsets."""
    count = len(grid.offsets())
    offsets = tf.constant(grid.offsets())

    def accumulate(list_terms: Callable[[tf.Tensor], Terms], totals: Planes) -> Planes:
        def body(index: tf.Tensor, *totals: tf.Tensor) -> tuple[tf.Tensor, ...]:
            terms = list_terms(offsets[index])
            # One sum of all terms reads and writes the total only once.
            return index + 1, *map(tf.add_n, ([a, *b] for a, b in zip(totals, terms, strict=True)))

        _, *totals = tf.while_loop(
            lambda index, *_: index < count, body, (0, *totals), parallel_iterations=1
        )
        return totals

    @tf.custom_gradient
    def total(*planes: tf.Tensor) -> tuple[Planes, Callable[..., Planes]]:
        def gradient(*upstream: tf.Tensor) -> Planes:
            def list_gradients(offset: tf.Tensor) -> Terms:
                with tf.GradientTape() as tape:
                    tape.watch(planes)
                    terms = _weigh_pair(grid, weigh, offset, list(planes))
                both = [(each, each) for each in upstream]
                return [(each,) for each in tape.gradient(terms, planes, output_gradients=both)]

            return accumulate(list_gradients, [tf.zeros_like(plane) for plane in planes])

        zero = tf.zeros_like(_window(planes[0], 0, grid.count))
        sums = accumulate(
            lambda offset: _weigh_pair(grid, weigh, offset, list(planes)),
            [zero] * (len(planes) + 1),
        )
        return sums, gradient

    return total
