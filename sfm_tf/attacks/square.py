"""A random search that only sees logits: the Square attack."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_options import COUNT, FLAG, NORM, POSITIVE, SEED, SHARE, Option
from sfm_tf.attacks.compiled_attack import AttackBatch, BatchOutcome, CompiledAttack
from sfm_tf.attacks.cross_entropy import stable_cross_entropy
from sfm_tf.attacks.margin_losses import margin
from sfm_tf.attacks.seeds import numbered
from sfm_tf.attacks.selection import choose
from sfm_tf.attacks.square_proposals import PROPOSALS
from sfm_tf.attacks.unfinished import advance_unfinished

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


class _Standing(NamedTuple):
    """How far the search has come, per image.

    Attributes:
        images: The best ones so far.
        margin: By how much their label's logit exceeds the largest other one.
        fooled: Whether the model is wrong about them, which ends the search.
        queries: Int32: queries spent when they were found.
    """

    images: tf.Tensor
    margin: tf.Tensor
    fooled: tf.Tensor
    queries: tf.Tensor


class SquareAttack(CompiledAttack):
    """Proposes changes of squares at random places and keeps those that help.

    Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via
    random search", 2020, Algorithm 1. In the L-infinity norm (Algorithm 2) it begins with vertical
    stripes of plus or minus the radius; a square then moves its pixels to either end of the ball.
    In the L2 norm (Algorithm 3) it begins with a grid of bumps; one window then gives its share of
    the norm to another, which a bump is added to. What lowers the margin stays; squares shrink with
    time. Because it takes no gradient, it succeeds where a model only hides its gradients.

    An image stops changing once the model is wrong about it, and is left alone if it was wrong to
    begin with; from time to time such images leave the batch, so that the model need not see them.
    Unlike the authors' code, each image has its own squares, so that none depends on its batch;
    squares reach the last row and column; and the first proposal counts as a query.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        queries: How often the model may be asked about each image.
        p_init: Share of the image that the first squares cover.
        stretch_schedule: Whether squares shrink to their smallest within `queries`, as in the
            paper; otherwise as in the first of 10 000 queries, which AutoAttack does.
        batch_size: Images attacked at a time.
        seed: Seed of everything random.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "norm": NORM,
        "epsilon": POSITIVE,
        "queries": COUNT,
        "p_init": SHARE,
        "stretch_schedule": FLAG,
        "batch_size": COUNT,
        "seed": SEED,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **CompiledAttack.defaults,
        "queries": 5000,
        "p_init": 0.8,
        "stretch_schedule": True,
    }

    queries: int
    p_init: float
    stretch_schedule: bool

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Sets the options and prepares the search, which is compiled at the first batch."""
        super().__init__(estimator, **options)
        # Partials, because TensorFlow counts compilations by the code of a function.
        self._compiled_start = tf.function(functools.partial(self._start), autograph=False)
        self._compiled_search = tf.function(functools.partial(self._search), autograph=False)
        self._compiled_loss = tf.function(functools.partial(self._loss), autograph=False)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        height, width = batch.images.shape[1:3]
        length = self.queries if self.stretch_schedule else _SCHEDULE_LENGTH
        sides = square_sides(self.queries, self.p_init, height, width, length)
        sides = PROPOSALS[self.norm].fit_sides(sides, min(height, width))
        best = self._compiled_start(batch)
        for first, last in _segments(self.queries):
            values = map(tf.constant, (first, last, sides, self.epsilon), _SEGMENT_TYPES)
            segment = _Segment(*values)
            search = functools.partial(self._compiled_search, segment=segment, norm=self.norm)
            best = advance_unfinished(search, batch, best, best.fooled, self.batch_size)
        loss = self._compiled_loss(best.images, batch.labels)
        return BatchOutcome(best.images, loss, best.queries, tf.zeros_like(best.fooled))

    def _start(self, batch: AttackBatch) -> _Standing:
        predictions = tf.argmax(self._logits(batch.images), axis=1)
        # The first proposal replaces the image whatever it does to its margin.
        infinite = tf.fill(tf.shape(batch.labels), math.inf)
        queries = tf.zeros_like(batch.labels, tf.int32)
        return _Standing(batch.images, infinite, predictions != batch.labels, queries)

    def _search(
        self, batch: AttackBatch, best: _Standing, segment: _Segment, norm: float | str
    ) -> _Standing:
        proposal = PROPOSALS[norm]
        beginning = proposal.begin(batch, batch.seeds, segment.epsilon)
        draws = _draws(batch, segment, proposal.number_count)

        def query(done: tf.Tensor, best: _Standing) -> tuple[tf.Tensor, _Standing]:
            numbers, side = draws[done - segment.first], segment.sides[done]
            proposed = proposal.propose(numbers, side, best.images, batch, segment.epsilon)
            images = tf.where(done == 0, beginning, proposed)
            logits = self._logits(images)
            margins = margin(logits, batch.labels)
            fooled = tf.argmax(logits, axis=1) != batch.labels
            improves = ~best.fooled & (fooled | (margins < best.margin))
            queries = tf.fill(tf.shape(margins), done + 1)
            new = _Standing(images, margins, fooled, queries)
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
