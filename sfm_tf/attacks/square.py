"""A random search that only sees logits: the Square attack."""

import functools
import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_options import COUNT, POSITIVE, SEED, SHARE, Option
from sfm_tf.attacks.compiled_attack import AttackBatch, BatchOutcome, CompiledAttack
from sfm_tf.attacks.cross_entropy import stable_cross_entropy
from sfm_tf.attacks.margin_losses import margin
from sfm_tf.attacks.selection import choose

# After how many queries of 10 000 the squares' area is halved again; from the authors' code.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE_LENGTH = 10_000
_LINF = Option(
    lambda value: isinstance(value, float | str) and value in (math.inf, "inf"),
    "'inf' or math.inf",
)


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
    """Proposes squares of one colour at random places and keeps those that help.

    Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via
    random search", 2020, Algorithms 1 and 2, for the L-infinity norm. It begins with vertical
    stripes of plus or minus the radius. A square moves its pixels to either end of the ball and
    stays if the margin falls; squares shrink with time. Because it takes no gradient, it succeeds
    where a model only hides its gradients.

    An image stops changing once the model is wrong about it, and is left alone if it was wrong to
    begin with. Unlike the authors' code, each image has its own squares, so that none depends on
    its batch; squares reach the last row and column; and the stripes count as a query.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: `math.inf` or "inf".
        epsilon: Radius of the ball, in the units of the pixels.
        queries: How often the model may be asked about each image.
        p_init: Share of the image that the first squares cover.
        batch_size: Images attacked at a time.
        seed: Seed of the stripes and the squares.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "norm": _LINF,
        "epsilon": POSITIVE,
        "queries": COUNT,
        "p_init": SHARE,
        "batch_size": COUNT,
        "seed": SEED,
    }
    attack_params: ClassVar[list[str]] = list(options)

    queries: int
    p_init: float

    def __init__(
        self,
        estimator: TensorFlowV2Classifier,
        *,
        norm: float | str = math.inf,
        epsilon: float,
        queries: int = 5000,
        p_init: float = 0.8,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        """Sets the options and prepares the search, which is compiled at the first batch."""
        super().__init__(
            estimator,
            norm=norm,
            epsilon=epsilon,
            queries=queries,
            p_init=p_init,
            batch_size=batch_size,
            seed=seed,
        )
        # A partial, because TensorFlow counts compilations by the code of a function.
        self._compiled_search = tf.function(functools.partial(self._search), autograph=False)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        height, width = batch.images.shape[1:3]
        sides = square_sides(self.queries, self.p_init, height, width)
        return self._compiled_search(
            batch, tf.constant(self.epsilon, tf.float32), tf.constant(sides)
        )

    def _search(self, batch: AttackBatch, epsilon: tf.Tensor, sides: tf.Tensor) -> BatchOutcome:
        stripes = _stripes(batch)
        draws = _draws(batch, tf.shape(sides)[0])

        def query(done: tf.Tensor, best: _Standing) -> tuple[tf.Tensor, _Standing]:
            square = _squares(draws[done], sides[done], batch.images.shape)
            change = tf.where(done == 0, stripes, 2.0 * square)
            images = _allowed(best.images + epsilon * change, batch, epsilon)
            logits = self._logits(images)
            margins = margin(logits, batch.labels)
            fooled = tf.argmax(logits, axis=1) != batch.labels
            improves = ~best.fooled & (fooled | (margins < best.margin))
            queries = tf.fill(tf.shape(margins), done + 1)
            new = _Standing(images, margins, fooled, queries)
            return done + 1, choose(improves, new, best)

        _, best = tf.while_loop(
            lambda done, best: (done < tf.shape(sides)[0]) & ~tf.reduce_all(best.fooled),
            query,
            (0, self._unchanged(batch)),
        )
        loss = stable_cross_entropy(self._logits(best.images), batch.labels)
        return BatchOutcome(best.images, loss, best.queries, tf.zeros_like(best.fooled))

    def _unchanged(self, batch: AttackBatch) -> _Standing:
        predictions = tf.argmax(self._logits(batch.images), axis=1)
        # The stripes replace the image whatever they do to its margin.
        infinite = tf.fill(tf.shape(batch.labels), math.inf)
        queries = tf.zeros_like(batch.labels, tf.int32)
        return _Standing(batch.images, infinite, predictions != batch.labels, queries)


def square_sides(queries: int, p_init: float, height: int, width: int) -> np.ndarray:
    """Returns the side of each query's square.

    Args:
        queries: Number of queries; the schedule is stretched to it.
        p_init: Share of the image that the first squares cover.
        height: Rows of an image.
        width: Columns of an image.

    Returns:
        Int32 of shape `(queries,)`, in pixels: 0 for the first query, which is of stripes.
    """
    scaled = np.arange(queries - 1) * _SCHEDULE_LENGTH // queries
    halvings = np.searchsorted(_HALVINGS, scaled, side="left")
    sides = np.rint(np.sqrt(p_init / 2.0**halvings * height * width))
    sides = np.clip(sides, 1, min(height, width)).astype(np.int32)
    return np.concatenate([np.zeros(1, np.int32), sides])


def _draws(batch: AttackBatch, queries: tf.Tensor) -> tf.Tensor:
    """Returns numbers in [0, 1) for each query and image: two for a place, one for each channel.

    Drawn at once, because drawing image by image in every query would take longer than the model.
    """
    count = 2 + batch.images.shape[3]
    draws = tf.map_fn(
        lambda seed: tf.random.stateless_uniform((queries, count), seed),
        batch.seeds,
        fn_output_signature=tf.float32,
    )
    return tf.transpose(draws, (1, 0, 2))


def _stripes(batch: AttackBatch) -> tf.Tensor:
    """Returns columns of one sign each, shape `(batch, 1, width, channels)`."""
    shape = (1, *batch.images.shape[2:])

    def draw(seed: tf.Tensor) -> tf.Tensor:
        # Apart from the seeds of the squares.
        seed = tf.random.experimental.stateless_fold_in(seed, 1)
        return _sign(tf.random.stateless_uniform(shape, seed))

    return tf.map_fn(draw, batch.seeds, fn_output_signature=tf.float32)


def _squares(draws: tf.Tensor, side: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Returns images of `shape`, zero but for a square whose channels have one sign each."""

    def is_inside(uniforms: tf.Tensor, size: int) -> tf.Tensor:
        places = tf.floor(uniforms * tf.cast(size - side + 1, tf.float32))
        offsets = tf.range(size, dtype=tf.float32) - places[:, None]
        return (offsets >= 0.0) & (offsets < tf.cast(side, tf.float32))

    rows, columns = is_inside(draws[:, 0], shape[1]), is_inside(draws[:, 1], shape[2])
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return tf.where(inside, _sign(draws[:, None, None, 2:]), 0.0)


def _sign(uniforms: tf.Tensor) -> tf.Tensor:
    return tf.where(uniforms < 0.5, -1.0, 1.0)


def _allowed(images: tf.Tensor, batch: AttackBatch, epsilon: tf.Tensor) -> tf.Tensor:
    low, high = batch.images - epsilon, batch.images + epsilon
    images = tf.clip_by_value(tf.clip_by_value(images, low, high), 0.0, 1.0)
    return tf.where(batch.mask != 0.0, images, batch.images)
