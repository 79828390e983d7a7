"""Low-rank completion of many small matrices at once, by alternating ridge regressions.

The method is softImpute-ALS of Hastie, Mazumder, Lee and Zadeh, "Matrix completion and low-rank SVD
via fast alternating least squares", 2015, sections 2 and 3. Its fixed points are those of singular
value thresholding, but a step inverts one matrix of `rank` rows where that needs a singular value
decomposition, which TensorFlow computes on a CPU matrix by matrix.
"""

import tensorflow as tf

_START_SEEDS = (2021, 6485)
"""Any pair: where the iteration starts must only be generic, and always the same."""

_SMALLEST_SCALE = 1e-6
"""Keeps the regressions of a matrix of zeros solvable; they then give zeros."""


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
