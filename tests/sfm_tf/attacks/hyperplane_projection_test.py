import math

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import brentq, linprog, minimize

from sfm_tf.attacks.hyperplane_projection import HYPERPLANE_GEOMETRIES, Hyperplane, biased_step

NORMS = [math.inf, 2]


def _plane(values, gradients):
    return Hyperplane(tf.constant(values, tf.float32), tf.constant(gradients, tf.float32))


def _way(norm, images, values, gradients):
    way = HYPERPLANE_GEOMETRIES[norm].way(tf.constant(images), _plane(values, gradients))
    return np.asarray(way, np.float64)


def _pixels(*rows):
    """Images of one row and one channel."""
    return np.array(rows, np.float32)[:, None, :, None]


def _case(seed, shape, reach):
    """Images with black and white pixels, and values of a linear function in share of its range.

    `reach` is that share: at 1, only the corner of [0, 1] that is farthest from the image brings
    the function to zero.
    """
    random = np.random.default_rng(seed)
    images = np.clip(random.uniform(-0.5, 1.5, shape), 0.0, 1.0).astype(np.float32)
    gradients = random.normal(size=shape).astype(np.float32)
    gradients[:, 0, 0] = 0.0
    signs = random.choice([-1.0, 1.0], len(images))
    down = np.minimum(-gradients * images, gradients * (1.0 - images)).sum(axis=(1, 2, 3))
    up = np.maximum(-gradients * images, gradients * (1.0 - images)).sum(axis=(1, 2, 3))
    values = -reach * np.where(signs > 0, up, down)
    return images, values.astype(np.float32), gradients


def _smallest_linf(image, value, gradient):
    """The least t with gradient @ d = -value, -t <= d <= t and image + d in [0, 1]."""
    count = image.size
    bounds = [*zip(-image, 1.0 - image, strict=True), (0.0, None)]
    limits = np.block(
        [[np.eye(count), -np.ones((count, 1))], [-np.eye(count), -np.ones((count, 1))]]
    )
    result = linprog(
        np.eye(count + 1)[-1],
        limits,
        np.zeros(2 * count),
        np.append(gradient, 0.0)[None],
        [-value],
        bounds,
    )
    assert result.success
    return result.fun


def _smallest_l2(image, value, gradient):
    """The least norm of d with gradient @ d = -value and image + d in [0, 1]."""
    result = minimize(
        lambda change: change @ change,
        np.zeros(image.size),
        jac=lambda change: 2.0 * change,
        bounds=list(zip(-image, 1.0 - image, strict=True)),
        constraints={
            "type": "eq",
            "fun": lambda change: gradient @ change + value,
            "jac": lambda _: gradient,
        },
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert result.success
    return np.sqrt(result.fun)


ORACLES = {math.inf: _smallest_linf, 2: _smallest_l2}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("reach", [0.01, 0.3, 0.7, 0.95])
def test_the_way_is_the_smallest_that_reaches_the_hyperplane(norm, reach):
    images, values, gradients = _case(0, (20, 2, 3, 2), reach)
    ways = _way(norm, images, values, gradients)
    reached = values + np.sum(gradients * ways, axis=(1, 2, 3))
    np.testing.assert_allclose(reached, 0.0, atol=1e-5)
    assert (images + ways).min() > -1e-6
    assert (images + ways).max() < 1.0 + 1e-6
    sizes = np.linalg.norm(ways.reshape(20, -1), norm, axis=1)
    flat = zip(images.reshape(20, -1), values, gradients.reshape(20, -1), strict=True)
    expected = [ORACLES[norm](*(np.asarray(part, np.float64) for part in parts)) for parts in flat]
    np.testing.assert_allclose(sizes, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("norm", "dual"), [(math.inf, 1), (2, 2)])
def test_far_from_the_limits_the_way_is_as_long_as_the_dual_norm_says(norm, dual):
    random = np.random.default_rng(1)
    images = random.uniform(0.4, 0.6, (10, 4, 4, 3)).astype(np.float32)
    gradients = random.normal(size=images.shape).astype(np.float32)
    values = random.uniform(-1.0, 1.0, 10).astype(np.float32)
    ways = _way(norm, images, values, gradients)
    expected = np.abs(values) / np.linalg.norm(gradients.reshape(10, -1), dual, axis=1)
    np.testing.assert_allclose(
        np.linalg.norm(ways.reshape(10, -1), norm, axis=1), expected, rtol=1e-5
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("reach", [0.1, 0.9])
def test_whole_images_are_projected_too(norm, reach):
    images, values, gradients = _case(2, (4, 32, 32, 3), reach)
    ways = _way(norm, images, values, gradients)
    for image, value, gradient, way in zip(images, values, gradients, ways, strict=True):
        downwards = -np.sign(value) * gradient.astype(np.float64)
        rooms = np.where(downwards > 0, 1.0 - image, image)
        slopes = np.abs(downwards)

        def lengths(level, slopes=slopes, rooms=rooms):
            return np.minimum(level if norm == math.inf else level * slopes, rooms)

        def missing(level, slopes=slopes, lengths=lengths, value=value):
            return np.sum(slopes * lengths(level)) - abs(value)

        expected = np.sign(downwards) * lengths(brentq(missing, 0.0, 1e6, xtol=1e-14, rtol=1e-12))
        np.testing.assert_allclose(way, expected, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_out_of_reach_every_pixel_that_counts_goes_to_its_end(norm):
    images = _pixels([0.25, 1.0, 0.5, 0.75])
    ways = _way(norm, images, [-9.0], _pixels([1.0, 2.0, 0.0, -0.5]))
    np.testing.assert_allclose(ways.ravel(), [0.75, 0.0, 0.0, -0.75], atol=1e-6)
    ways = _way(norm, images, [9.0], _pixels([1.0, 2.0, 0.0, -0.5]))
    np.testing.assert_allclose(ways.ravel(), [-0.25, -1.0, 0.0, 0.25], atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "expected"),
    # L-infinity: 0.25 from the first pixel, which ends there, and as much from either other one.
    # L2: the lengths are as 2 to 1, and the first pixel ends at 0.25.
    [(math.inf, [0.25, 0.5, 0.5]), (2, [0.25, 2 / 3, 1 / 3])],
)
def test_worked_out_by_hand(norm, expected):
    gradients = {math.inf: [1.0, 1.0, 1.0], 2: [1.0, 2.0, 1.0]}[norm]
    needed = {math.inf: 1.25, 2: 0.25 + 4 / 3 + 1 / 3}[norm]
    ways = _way(norm, _pixels([0.75, 0.0, 0.0]), [-needed], _pixels(gradients))
    np.testing.assert_allclose(ways.ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e30])
def test_the_scale_of_the_function_does_not_matter(norm, scale):
    images, values, gradients = _case(3, (10, 2, 3, 2), 0.5)
    expected = _way(norm, images, values, gradients)
    scale = np.float32(scale)
    np.testing.assert_allclose(
        _way(norm, images, scale * values, scale * gradients), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("value", "gradient"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_without_a_gradient_or_a_value_there_is_no_way_to_go(norm, value, gradient):
    images, _, gradients = _case(4, (3, 2, 3, 2), 0.5)
    ways = _way(norm, images, [value] * 3, gradient * gradients)
    np.testing.assert_array_equal(ways, np.zeros_like(ways))


@pytest.mark.parametrize("norm", NORMS)
def test_a_value_out_of_all_proportion_stays_finite(norm):
    ways = _way(norm, _pixels([0.25, 0.5]), [1e30], _pixels([1e-30, 0.0]))
    np.testing.assert_allclose(ways.ravel(), [-0.25, 0.0])


@pytest.mark.parametrize(("norm", "dual"), [(math.inf, 1), (2, 2)])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_norms_are_those_of_numpy(norm, dual, scale):
    values = (scale * np.random.default_rng(5).normal(size=(5, 4, 3, 2))).astype(np.float32)
    geometry = HYPERPLANE_GEOMETRIES[norm]
    flat = values.reshape(5, -1).astype(np.float64)
    for function, order in ((geometry.norm, norm), (geometry.dual_norm, dual)):
        expected = np.linalg.norm(flat, order, axis=1)
        np.testing.assert_allclose(function(tf.constant(values)), expected, rtol=1e-6)


def test_the_norm_infinity_has_two_names():
    assert HYPERPLANE_GEOMETRIES["inf"] is HYPERPLANE_GEOMETRIES[math.inf]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("alpha_max", "expected"),
    # The boundary is where the first pixel is 0.8, at 0.1 from the point and 0.3 from the image:
    # alpha is 1/4 or alpha_max. With eta = 2 the ways end at 0.9 and 1.1.
    [(1.0, [0.75 * 0.9 + 0.25 * 1.1, 0.75 * 0.4 + 0.25 * 0.6]), (0.1, [0.92, 0.42])],
)
def test_a_step_is_between_the_projections_of_point_and_image(norm, alpha_max, expected):
    image, point = _pixels([0.5, 0.6]), _pixels([0.7, 0.4])
    plane = _plane([-0.2], _pixels([2.0, 0.0]))
    moved = biased_step(
        HYPERPLANE_GEOMETRIES[norm], image, point, plane, tf.constant(alpha_max), tf.constant(2.0)
    )
    np.testing.assert_allclose(np.ravel(moved), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_without_a_gradient_is_a_share_of_the_way_to_the_image(norm):
    image, point = _pixels([0.5, 0.6]), _pixels([0.7, 0.4])
    plane = _plane([-0.2], _pixels([0.0, 0.0]))
    moved = biased_step(
        HYPERPLANE_GEOMETRIES[norm], image, point, plane, tf.constant(0.1), tf.constant(1.05)
    )
    np.testing.assert_allclose(np.ravel(moved), [0.68, 0.42], rtol=1e-6)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
