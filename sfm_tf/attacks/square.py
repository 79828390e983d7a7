"""The Square attack, a random search that only sees logits.

Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random
search", 2020: Algorithm 1 is the search, Algorithms 2 (L-infinity) and 3 (L2) are its proposals.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    COUNT,
    FLAG,
    SHARE,
    AttackBatch,
    BatchOutcome,
    CompiledAttack,
    advance_unfinished,
    choose,
)
from sfm_tf.attacks.seeds import numbered
from sfm_tf.models.logit_losses import margin, stable_cross_entropy

_IMAGE_AXES = (1, 2, 3)
_WINDOW_AXES = (1, 2)
# The first L2 proposal has this many bumps from one edge to the other.
_TILES = 5
_SMALLEST_BUMP = 3


class Proposal(NamedTuple):
    """How the search moves under a norm.

    Attributes:
        fit_sides: Maps the int sides of all queries, in pixels, and the shorter edge of the image
            to those of the windows that are used.
        number_count: Numbers that a proposal takes for each image beside one for each channel.
        initialize: Maps a batch and the radius to the images tried first.
        propose: Maps numbers in [0, 1) of shape `(batch, number_count + channels)`, the side of
            this query's window, the best images so far, a batch and the radius to the images tried
            next. All images are allowed ones.
    """

    fit_sides: Callable[[np.ndarray, int], np.ndarray]
    number_count: int
    initialize: Callable[[AttackBatch, tf.Tensor], tf.Tensor]
    propose: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, AttackBatch, tf.Tensor], tf.Tensor]


def _fit_squares(sides: np.ndarray, edge: int) -> np.ndarray:
    return np.clip(sides, 1, edge)


def _stripes(batch: AttackBatch, epsilon: tf.Tensor) -> tf.Tensor:
    """Returns images with columns of plus or minus the radius."""
    stripes = _sign(_uniforms((1, *batch.images.shape[2:]), batch.seeds))
    return _in_box(batch.images + epsilon * stripes, batch, epsilon)


def _propose_square(
    numbers: tf.Tensor, side: tf.Tensor, best: tf.Tensor, batch: AttackBatch, epsilon: tf.Tensor
) -> tf.Tensor:
    """Algorithm 2: moves a square, each channel with its own sign, to an end of the ball."""
    rows, columns = _offsets(numbers[:, 0], numbers[:, 1], side, batch.images.shape)
    inside = _is_inside(rows, columns, side)[..., None]
    change = tf.where(inside, _sign(numbers[:, None, None, 2:]), 0.0)
    return _in_box(best + 2.0 * epsilon * change, batch, epsilon)


def _in_box(images: tf.Tensor, batch: AttackBatch, epsilon: tf.Tensor) -> tf.Tensor:
    low, high = batch.images - epsilon, batch.images + epsilon
    images = tf.clip_by_value(tf.clip_by_value(images, low, high), 0.0, 1.0)
    return tf.where(batch.mask != 0.0, images, batch.images)


def _fit_bumps(sides: np.ndarray, edge: int) -> np.ndarray:
    odd = np.maximum(sides, _SMALLEST_BUMP) // 2 * 2 + 1
    return np.minimum(odd, edge - (1 - edge % 2))


def _bumps(batch: AttackBatch, epsilon: tf.Tensor) -> tf.Tensor:
    """Returns images under a grid of bumps, each with its own direction and signs."""
    height, width, channels = batch.images.shape[1:]
    side = max(min(height, width) // _TILES, 1)
    rows, columns = height // side, width // side
    numbers = _uniforms((rows, 1, columns, 1, channels + 1), batch.seeds)
    bump = make_bump(tf.constant(side), side)[:, None, :, None]
    lying = tf.transpose(bump, (2, 1, 0, 3))
    tiles = _sign(numbers[..., 1:]) * tf.where(numbers[..., :1] < 0.5, bump, lying)
    grid = tf.reshape(tiles, (-1, rows * side, columns * side, channels))
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    bumps = tf.image.pad_to_bounding_box(grid, top, left, height, width)
    return _on_sphere(bumps, batch, epsilon)


def _propose_bump(
    numbers: tf.Tensor, side: tf.Tensor, best: tf.Tensor, batch: AttackBatch, epsilon: tf.Tensor
) -> tf.Tensor:
    """Algorithm 3: clears one window and gives its norm to another, which a bump is added to."""
    shape, change = batch.images.shape, best - batch.images
    rows, columns = _offsets(numbers[:, 0], numbers[:, 1], side, shape)
    gains = _is_inside(rows, columns, side)[..., None]
    loses = _is_inside(*_offsets(numbers[:, 2], numbers[:, 3], side, shape), side)[..., None]
    bump = _place_bump(rows, columns, numbers[:, 4], side, min(shape[1:3]))
    old = _unit(tf.where(gains, change, 0.0), _WINDOW_AXES)
    new = _unit(
        tf.where(gains, bump[..., None] * _sign(numbers[:, None, None, 5:]) + old, 0.0),
        _WINDOW_AXES,
    )
    unused = tf.nn.relu(epsilon**2 - _squared_norm(change, _IMAGE_AXES)) / float(shape[3])
    freed = _squared_norm(tf.where(gains | loses, change, 0.0), _WINDOW_AXES)
    change = tf.where(gains, tf.sqrt(unused + freed) * new, tf.where(loses, 0.0, change))
    return _on_sphere(change, batch, epsilon)


def _place_bump(
    rows: tf.Tensor, columns: tf.Tensor, numbers: tf.Tensor, side: tf.Tensor, edge: int
) -> tf.Tensor:
    """Returns a bump for each image, `(batch, height, width)`: every other one lying."""
    down, across = rows[:, :, None], columns[:, None, :]
    stands = numbers[:, None, None] < 0.5
    place = tf.where(stands, down * edge + across, across * edge + down)
    bump = tf.reshape(make_bump(side, edge), [-1])
    inside = _is_inside(rows, columns, side)
    return tf.where(inside, tf.gather(bump, tf.where(inside, place, 0)), 0.0)


def make_bump(side: tf.Tensor, edge: int) -> tf.Tensor:
    """Returns two hills of norm 1 together, of which the lower one is negative.

    Andriushchenko et al. 2020, section 3.4: each hill falls off from its centre by
    sum over k of 1 / (k + 1)^2, k from the distance to the centre, in squares around it, to half
    the side.

    Args:
        side: Int scalar, at most `edge`: rows and columns of the bump.
        edge: Rows and columns of what is returned.

    Returns:
        Float32 of shape `(edge, edge)`, zero outside the first `side` rows and columns.
    """
    terms = 1.0 / np.arange(1, edge + 2, dtype=np.float64) ** 2
    sums = tf.constant(np.concatenate([[0.0], np.cumsum(terms)]), tf.float32)
    half, places = side // 2, tf.range(edge)
    is_upper = places < half
    # The centre of the hill that a row belongs to.
    centre = tf.where(is_upper, half // 2, half + (side - half) // 2)
    down, across = tf.abs(places - centre)[:, None], tf.abs(places - half)[None, :]
    height = tf.gather(sums, half + 1) - tf.gather(sums, tf.minimum(tf.maximum(down, across), half))
    inside = (places < side)[:, None] & (places < side)[None, :]
    hills = [inside & is_upper[:, None], inside & ~is_upper[:, None]]
    upper, lower = (_unit(tf.where(hill, height, 0.0), (0, 1)) for hill in hills)
    return _unit(upper - lower, (0, 1))


def _on_sphere(change: tf.Tensor, batch: AttackBatch, epsilon: tf.Tensor) -> tf.Tensor:
    """Returns images of a perturbation scaled to the radius; clipping then only shortens it."""
    change = epsilon * _unit(tf.where(batch.mask != 0.0, change, 0.0), _IMAGE_AXES)
    return tf.clip_by_value(batch.images + change, 0.0, 1.0)


def _squared_norm(values: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    return tf.reduce_sum(values**2, axis=axes, keepdims=True)


def _unit(values: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    return tf.math.divide_no_nan(values, tf.sqrt(_squared_norm(values, axes)))


def _offsets(
    vertical: tf.Tensor, horizontal: tf.Tensor, side: tf.Tensor, shape: tf.TensorShape
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns how far rows and columns are from a window's first ones: int32 of two dimensions."""

    def offsets(numbers: tf.Tensor, size: int) -> tf.Tensor:
        first = tf.cast(numbers * tf.cast(size - side + 1, tf.float32), tf.int32)
        return tf.range(size) - first[:, None]

    return offsets(vertical, shape[1]), offsets(horizontal, shape[2])


def _is_inside(rows: tf.Tensor, columns: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    inside_rows, inside_columns = ((o >= 0) & (o < side) for o in (rows, columns))
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def _sign(numbers: tf.Tensor) -> tf.Tensor:
    return tf.where(numbers < 0.5, -1.0, 1.0)


def _uniforms(shape: tuple[int, ...], seeds: tf.Tensor) -> tf.Tensor:
    return tf.map_fn(
        lambda seed: tf.random.stateless_uniform(shape, seed),
        seeds,
        fn_output_signature=tf.float32,
    )


_LINF = Proposal(_fit_squares, 2, _stripes, _propose_square)
_L2 = Proposal(_fit_bumps, 5, _bumps, _propose_bump)

PROPOSALS: Mapping[float | str, Proposal] = {math.inf: _LINF, "inf": _LINF, 2: _L2}
"""The proposals by the norm's order, as ART names it."""


# After how many queries of 10 000 the squares' area is halved again; from the authors' code.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE_LENGTH = 10_000
# Most images that are fooled at all are fooled early.
_FIRST_SEGMENT = 50


class _Segment(NamedTuple):
    """Consecutive queries and what they are made with; nothing here needs another compilation.

    Attributes:
        first: Int32 number of queries made before.
        last: Int32 number of queries made then.
        sides: Int32 `(queries,)`: the side of the window of each query of the search.
        epsilon: Radius of the ball.
    """

    first: tf.Tensor
    last: tf.Tensor
    sides: tf.Tensor
    epsilon: tf.Tensor


_SEGMENT_TYPES = _Segment(tf.int32, tf.int32, tf.int32, tf.float32)


class _Best(NamedTuple):
    """The best images so far.

    Attributes:
        images: The images.
        margin: By how much their label's logit exceeds the largest other one.
        fooled: Whether the model is wrong about them, which ends the search.
        queries: Int32: queries spent when they were found.
    """

    images: tf.Tensor
    margin: tf.Tensor
    fooled: tf.Tensor
    queries: tf.Tensor


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class SquareAttack(CompiledAttack):
    """Proposes changes of squares at random places and keeps those that help.

    In the L-infinity norm the search begins with vertical stripes of plus or minus the radius; a
    square then moves its pixels to either end of the ball. In the L2 norm it begins with a grid of
    bumps; one window then gives its share of the norm to another window, which a bump is added to.
    A proposal that lowers the margin is kept; squares shrink with time. The attack takes no
    gradient, so it succeeds where a model only hides its gradients.

    An image stops changing once the model is wrong about it, and never changes if the model is
    wrong without an attack; from time to time such images leave the batch, to spare the model.
    Unlike in the authors' code, each image has its own squares, so that none depends on its batch;
    squares reach the last row and column; and the first proposal counts as a query.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        queries: How often the model may be shown a change of each image.
        p_init: Share of the image that the first squares cover.
        stretch_schedule: Whether squares shrink to their smallest within `queries`, as in the
            paper; otherwise as in the first of 10 000 queries, which AutoAttack does.
        batch_size: Images attacked at a time.
        seed: Seed of everything random.
    """

    targeted: ClassVar[bool] = False
    queries: int = 5000
    p_init: float = 0.8
    stretch_schedule: bool = True

    def __post_init__(self, estimator: TensorFlowV2Classifier) -> None:
        """Prepares the search, which is compiled at the first batch."""
        super().__post_init__(estimator)
        self._compiled_start = self._compiled(self._start)
        self._compiled_search = self._compiled(self._search, "norm")
        self._compiled_loss = self._compiled(self._loss)

    def _check_params(self) -> None:
        super()._check_params()
        self._check(COUNT, "queries")
        self._check(SHARE, "p_init")
        self._check(FLAG, "stretch_schedule")

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        height, width = batch.images.shape[1:3]
        length = self.queries if self.stretch_schedule else _SCHEDULE_LENGTH
        sides = square_sides(self.queries, self.p_init, height, width, length)
        sides = PROPOSALS[self.norm].fit_sides(sides, min(height, width))
        best = self._compiled_start(batch)
        for first, last in _segments(self.queries):
            values = map(tf.constant, (first, last, sides, self.epsilon), _SEGMENT_TYPES)
            search = functools.partial(self._compiled_search, _Segment(*values))
            best = advance_unfinished(search, batch, best, best.fooled, self.batch_size)
        loss = self._compiled_loss(best.images, batch.labels)
        return BatchOutcome(best.images, loss, best.queries, tf.zeros_like(best.fooled))

    def _start(self, batch: AttackBatch) -> _Best:
        predictions = tf.argmax(self._logits(batch.images), axis=1)
        # The first proposal replaces the image whatever it does to its margin.
        infinite = tf.fill(tf.shape(batch.labels), math.inf)
        queries = tf.zeros_like(batch.labels, tf.int32)
        return _Best(batch.images, infinite, predictions != batch.labels, queries)

    def _search(self, segment: _Segment, batch: AttackBatch, best: _Best) -> _Best:
        """Makes the queries of a segment."""
        proposal = PROPOSALS[self.norm]
        initial = proposal.initialize(batch, segment.epsilon)
        draws = _draws(batch, segment, proposal.number_count)

        def query(done: tf.Tensor, best: _Best) -> tuple[tf.Tensor, _Best]:
            numbers, side = draws[done - segment.first], segment.sides[done]
            proposed = proposal.propose(numbers, side, best.images, batch, segment.epsilon)
            images = tf.where(done == 0, initial, proposed)
            logits = self._logits(images)
            margins = margin(logits, batch.labels)
            fooled = tf.argmax(logits, axis=1) != batch.labels
            improves = ~best.fooled & (fooled | (margins < best.margin))
            queries = tf.fill(tf.shape(margins), done + 1)
            new = _Best(images, margins, fooled, queries)
            return done + 1, choose(improves, new, best)

        _, best = tf.while_loop(
            lambda done, best: (done < segment.last) & ~tf.reduce_all(best.fooled),
            query,
            (segment.first, best),
        )
        return best

    def _loss(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return stable_cross_entropy(self._logits(images), labels)


def square_sides(
    queries: int, p_init: float, height: int, width: int, schedule_length: int
) -> np.ndarray:
    """Returns the side of each query's square.

    Args:
        queries: Number of queries.
        p_init: Share of the image that the first squares cover.
        height: Rows of an image.
        width: Columns of an image.
        schedule_length: Number of queries that the schedule, of 10 000, is stretched to.

    Returns:
        Int of shape `(queries,)`, in pixels, as it is before it is made to fit into the image: 0
        for the first query, which is of no square.
    """
    scaled = np.arange(queries - 1) * _SCHEDULE_LENGTH // schedule_length
    halvings = np.searchsorted(_HALVINGS, scaled, side="left")
    sides = np.rint(np.sqrt(p_init / 2.0**halvings * height * width)).astype(int)
    return np.concatenate([np.zeros(1, int), sides])


def _segments(queries: int) -> Iterator[tuple[int, int]]:
    """Yields the first and the last query of segments that double in length."""
    first, length = 0, _FIRST_SEGMENT
    while first < queries:
        last = min(first + length, queries)
        yield first, last
        first, length = last, 2 * length


def _draws(batch: AttackBatch, segment: _Segment, number_count: int) -> tf.Tensor:
    """Returns numbers in [0, 1) for each query of the segment and each image.

    Drawn at once, because drawing image by image in every query would take longer than the model.
    """
    shape = (segment.last - segment.first, number_count + batch.images.shape[3])
    draws = tf.map_fn(
        lambda seed: tf.random.stateless_uniform(shape, seed),
        # Apart from the seeds of the first proposal.
        numbered(batch.seeds, segment.first + 1),
        fn_output_signature=tf.float32,
    )
    return tf.transpose(draws, (1, 0, 2))
