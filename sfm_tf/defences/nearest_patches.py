"""Exact search for the nearest of many patches (Guo et al. 2018, section 4.4)."""

import numpy as np
import tensorflow as tf

_SCORES_AT_ONCE = 1 << 22
_GROUP = 16


def find_nearest_patches(queries: tf.Tensor, patches: tf.Tensor, neighbours: int) -> tf.Tensor:
    """Finds the patches of the least L2 distance to each query, by comparing with all of them.

    Distances are squared norms less twice the products of a matrix product, exact but for the
    rounding of their type. Queries are taken a few at a time, so that no more than about 4 million
    distances are held at once, or those of one query.

    Args:
        queries: Float of shape `(queries, values)`, of values in [0, 1].
        patches: The same type, of shape `(patches, values)`; of known shape.
        neighbours: From 1 to the number of patches.

    Returns:
        Int32 of shape `(queries, neighbours)`: rows of `patches`, nearest first.
    """
    group = _GROUP if patches.shape[0] >= _GROUP * neighbours else 1
    matrix = _score_matrix(patches, group)
    rows = max(1, _SCORES_AT_ONCE // matrix.shape[1])
    # One step for no queries at all, because no steps have no shape.
    steps = tf.maximum(1, -(-tf.shape(queries)[0] // rows))
    found = tf.TensorArray(tf.int32, steps, element_shape=[None, neighbours], infer_shape=False)

    def body(step: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        values = queries[step * rows : (step + 1) * rows] - 0.5
        scores = tf.matmul(tf.pad(values, [[0, 0], [0, 1]], constant_values=1.0), matrix)
        return step + 1, found.write(step, _best_columns(scores, neighbours, group))

    _, found = tf.while_loop(lambda step, _: step < steps, body, (0, found), parallel_iterations=1)
    return found.concat()


def _score_matrix(patches: tf.Tensor, group: int) -> tf.Tensor:
    """The matrix by which a query and a one are multiplied to be scored, highest for nearest.

    The score is half of the query's squared norm, the same for all patches, less half of the
    squared distance. Values are taken less 0.5, to lose less in rounding. Columns that fill up a
    multiple of `group` have the lowest score.
    """
    centered = patches - 0.5
    norms = tf.reduce_sum(centered**2, axis=1, keepdims=True)
    rows = tf.concat([centered, norms / -2.0], axis=1)
    filling = np.zeros([-patches.shape[0] % group, rows.shape[1]])
    filling[:, -1] = -1e30
    return tf.transpose(tf.concat([rows, tf.constant(filling, rows.dtype)], axis=0))


def _best_columns(scores: tf.Tensor, count: int, group: int) -> tf.Tensor:
    """Finds the `count` highest scores of each row.

    They are in the `count` groups of columns with the highest maxima. `top_k` of all columns takes
    several times as long.
    """
    if group == 1:
        return tf.math.top_k(scores, count).indices
    stride = scores.shape[1] // group
    maxima = tf.reduce_max(tf.reshape(scores, [-1, group, stride]), axis=1)
    first = tf.math.top_k(maxima, count).indices
    columns = first[..., tf.newaxis] + stride * tf.range(group)
    columns = tf.reshape(columns, [-1, count * group])
    best = tf.math.top_k(tf.gather(scores, columns, axis=1, batch_dims=1), count).indices
    return tf.gather(columns, best, axis=1, batch_dims=1)
