import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from sfm_tf.attacks.norm_balls import BALLS, sample_points

SHAPE = (5, 4, 3, 2)


def _values(scale):
    return (np.random.default_rng(0).normal(size=SHAPE) * scale).astype(np.float32)


def _norms(values, order):
    return np.linalg.norm(np.asarray(values, np.float64).reshape(len(values), -1), order, axis=1)


@pytest.mark.parametrize("order", [math.inf, 2])
def test_projection_reaches_the_sphere_from_outside_and_keeps_the_inside(order):
    project = BALLS[order].project
    outside, inside = _values(1.0), _values(1e-3)
    np.testing.assert_allclose(_norms(project(outside, 0.1), order), 0.1, rtol=1e-6)
    np.testing.assert_array_equal(project(inside, 0.1), inside)


@pytest.mark.parametrize("order", [math.inf, 2])
def test_projection_is_the_nearest_point(order):
    # The nearest point of a convex set is the one where no point of the set lies beyond it.
    outside, radius = _values(1.0), 0.1
    nearest = BALLS[order].project(outside, radius).numpy()
    others = _values(1.0)[::-1]
    others = radius * others / _norms(others, order)[:, None, None, None]
    beyond = np.sum((outside - nearest) * (others - nearest), axis=(1, 2, 3))
    assert (beyond <= 1e-6).all()


@pytest.mark.parametrize(("order", "dual"), [(math.inf, 1), (2, 2)])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_steepest_direction_attains_the_dual_norm(order, dual, scale):
    gradient = _values(scale)
    direction = BALLS[order].steepest(gradient).numpy().astype(np.float64)
    np.testing.assert_allclose(_norms(direction, order), 1.0, rtol=1e-6)
    gain = np.sum(gradient * direction, axis=(1, 2, 3))
    np.testing.assert_allclose(gain, _norms(gradient, dual), rtol=1e-6)


@pytest.mark.parametrize("order", [math.inf, 2])
def test_zero_gradient_has_no_direction(order):
    assert not np.any(BALLS[order].steepest(tf.zeros(SHAPE)))


@pytest.mark.parametrize(("order", "radius_of"), [(math.inf, np.inf), (2, 2)])
def test_samples_fill_the_ball_uniformly(order, radius_of):
    seeds = tf.constant([[3, index] for index in range(400)])
    points = sample_points(BALLS[order], tf.TensorShape((2, 2, 1)), seeds).numpy()
    # In 4 dimensions the share of the volume within radius r is r^4, in every norm.
    volume = _norms(points, radius_of) ** 4
    assert stats.kstest(volume, "uniform").pvalue > 0.01
    assert np.abs(points.mean(axis=0)).max() < 0.1


@pytest.mark.parametrize("order", [math.inf, 2])
def test_a_sample_depends_on_its_own_seed_alone(order):
    shape = tf.TensorShape((2, 2, 1))
    together = sample_points(BALLS[order], shape, tf.constant([[3, 0], [3, 1], [4, 1]])).numpy()
    alone = sample_points(BALLS[order], shape, tf.constant([[3, 1]])).numpy()
    np.testing.assert_array_equal(together[1], alone[0])
    assert np.abs(together[0] - together[1]).max() > 0.01
    assert np.abs(together[2] - together[1]).max() > 0.01
