import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.candidates import Evaluation
from sfm_tf.attacks.compiled_attack import AttackBatch
from sfm_tf.attacks.norm_balls import BALLS
from sfm_tf.attacks.paced_ascent import Limits, Point, ascend
from sfm_tf.attacks.step_pacing import checkpoint_windows

SHAPE = (2, 2, 1)
COUNT = 40
WEIGHTS = np.array([1.0, 2.0, 3.0, -1.5])


def _bumps(images):
    """A sum of waves, with many maxima, so that the way to one depends on every step."""
    flat = images.reshape(-1, 4)
    values, slopes = np.sin(12.0 * flat) @ WEIGHTS, 12.0 * np.cos(12.0 * flat) * WEIGHTS
    return values, slopes.reshape(images.shape)


def _evaluate(images):
    waves = tf.sin(12.0 * tf.reshape(images, (-1, 4)))
    objective = tf.linalg.matvec(waves, tf.constant(WEIGHTS, tf.float32))
    slopes = 12.0 * tf.cos(12.0 * images) * WEIGHTS.reshape(SHAPE).astype(np.float32)
    return Point(images, objective, slopes), Evaluation(objective, tf.zeros_like(objective))


def _samples(epsilon, norm):
    random = np.random.default_rng(2)
    images = random.uniform(0.0, 1.0, (COUNT, *SHAPE)).astype(np.float32)
    change = random.uniform(-1.0, 1.0, images.shape)
    sizes = np.linalg.norm(change.reshape(COUNT, -1), ord=norm, axis=1)
    starts = images + 0.9 * epsilon * change / sizes[:, None, None, None]
    return images, np.clip(starts, 0.0, 1.0).astype(np.float32)


def _ascend(images, starts, norm, epsilon, iterations, evaluate=_evaluate, first_iteration=0):
    batch = AttackBatch(tf.constant(images), tf.zeros(len(images), tf.int64), None, None)
    limits = Limits(
        tf.constant(epsilon), tf.constant(0.75), tf.constant(checkpoint_windows(iterations))
    )
    return ascend(
        tf.constant(starts), batch, BALLS[norm], limits, evaluate, tf.constant(first_iteration)
    )


def _project(image, center, norm, epsilon):
    change = image - center
    if norm == 2:
        change = change * min(1.0, epsilon / np.linalg.norm(change))
    return np.clip(center + np.clip(change, -epsilon, epsilon), 0.0, 1.0)


def _apgd_by_the_book(center, start, norm, epsilon, checkpoints, iterations):
    """Algorithm 1 of Croce and Hein 2020 for one image, with the paper's names."""

    def value(image):
        return float(_bumps(image)[0][0])

    x, f, eta = [start], [value(start)], 2.0 * epsilon
    x_max, f_max, rises, last_w, last_eta, last_f_max = start, f[0], 0, 0, eta, f[0]
    for k in range(iterations):
        gradient = _bumps(x[k])[1]
        step = np.sign(gradient) if norm == math.inf else gradient / np.linalg.norm(gradient)
        z = _project(x[k] + eta * step, center, norm, epsilon)
        moved = z
        if k > 0:
            moved = x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1])
        x.append(_project(moved, center, norm, epsilon))
        f.append(value(x[-1]))
        rises += f[-1] > f[-2]
        if f[-1] > f_max:
            x_max, f_max = x[-1], f[-1]
        if k + 1 in checkpoints:
            unchanged = last_eta == eta and last_f_max == f_max
            last_eta, last_f_max = eta, f_max
            if rises < 0.75 * (k + 1 - last_w) or unchanged:
                eta, x[-1], f[-1] = eta / 2.0, x_max, f_max
            rises, last_w = 0, k + 1
    return x_max


@pytest.mark.parametrize(("norm", "epsilon"), [(math.inf, 0.3), (2, 0.5)])
def test_takes_the_steps_of_the_paper(norm, epsilon):
    images, starts = _samples(epsilon, norm)
    checkpoints = (7, 13, 18, 21, 24, 27, 28, 30)
    expected = [
        _apgd_by_the_book(center[None], start[None], norm, epsilon, checkpoints, 30)[0]
        for center, start in zip(images.astype(np.float64), starts, strict=True)
    ]
    climb = _ascend(images, starts, norm, epsilon, 30)
    distances = np.abs(climb.best.images - expected).max(axis=(1, 2, 3))
    # Where two losses are as good as equal, float32 and float64 may go separate ways.
    assert np.mean(distances < 1e-3) >= 0.95
    np.testing.assert_array_equal(climb.top.images, climb.best.images)


def test_the_best_images_are_those_that_fool_however_high_others_are():
    """Fooled is what lies below the top: the best is then the highest of those that fool."""
    images, starts = _samples(0.3, math.inf)
    seen = []

    def evaluate(images):
        point, _ = _evaluate(images)
        fooled = tf.cast(point.objective < 3.0, tf.float32)
        seen.append(point.objective.numpy())
        return point, Evaluation(point.objective, fooled)

    climb = _ascend(images, starts, math.inf, 0.3, 10, evaluate)
    objectives = np.stack(seen)
    below = np.where(objectives < 3.0, objectives, -np.inf).max(axis=0)
    expected = np.where(np.isfinite(below), below, objectives.max(axis=0))
    assert (expected < objectives.max(axis=0)).any()
    np.testing.assert_allclose(climb.best.objective, expected, rtol=1e-6)


def test_iterations_count_from_the_first_one():
    images, starts = _samples(0.3, math.inf)
    first, later = (
        _ascend(images, starts, math.inf, 0.3, 10, first_iteration=number) for number in (0, 70)
    )
    assert first.best.iterations.numpy().min() >= 0
    assert first.best.iterations.numpy().max() <= 10
    np.testing.assert_array_equal(later.best.iterations, first.best.iterations + 70)


def test_images_whose_first_gradient_is_zero_are_stuck():
    images, starts = _samples(0.3, math.inf)

    def evaluate(images, is_flat):
        point, evaluation = _evaluate(images)
        slopes = tf.where(is_flat[:, None, None, None], 0.0, point.gradient)
        return point._replace(gradient=slopes), evaluation

    is_flat = np.arange(COUNT) % 3 == 0
    flat = functools.partial(evaluate, is_flat=tf.constant(is_flat))
    climb = _ascend(images, starts, math.inf, 0.3, 3, flat)
    np.testing.assert_array_equal(climb.is_stuck, is_flat)
    np.testing.assert_allclose(climb.best.images[is_flat], starts[is_flat], atol=1e-6)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
