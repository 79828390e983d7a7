"""One run of APGD: ascent with momentum, and a step size that each image has for itself."""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from sfm_tf.attacks.candidates import (
    Candidate,
    Evaluation,
    better,
    make_candidate,
    worst_candidate,
)
from sfm_tf.attacks.compiled_attack import AttackBatch
from sfm_tf.attacks.norm_balls import Ball
from sfm_tf.attacks.selection import choose
from sfm_tf.attacks.step_pacing import Pace, adapt, initial_pace

# Croce and Hein 2020, Algorithm 1: alpha, the weight of the new step beside the one before.
_NEW_STEP_WEIGHT = 0.75


class Limits(NamedTuple):
    """What can change without compiling anew, except for the number of `windows`.

    Attributes:
        epsilon: Radius of the ball.
        rho: Share of the steps between two checkpoints in which the loss must rise.
        windows: What `checkpoint_windows` returns for the number of steps.
    """

    epsilon: tf.Tensor
    rho: tf.Tensor
    windows: tf.Tensor


class Point(NamedTuple):
    """An iterate: its images, the loss there and the gradient of that."""

    images: tf.Tensor
    objective: tf.Tensor
    gradient: tf.Tensor


class Climb(NamedTuple):
    """The state of one run.

    Attributes:
        images: The images that are evaluated next.
        last: The point they were reached from.
        top: The point of the highest objective.
        pace: The step sizes.
        best: The most damaging images.
        is_stuck: Bool `(batch,)`: which images had a gradient of zero to begin with.
    """

    images: tf.Tensor
    last: Point
    top: Point
    pace: Pace
    best: Candidate
    is_stuck: tf.Tensor


def ascend(
    start: tf.Tensor,
    batch: AttackBatch,
    ball: Ball,
    limits: Limits,
    evaluate: Callable[[tf.Tensor], tuple[Point, Evaluation]],
    first_iteration: tf.Tensor,
) -> Climb:
    """Runs Algorithm 1 of Croce and Hein 2020.

    A step is twice the radius long to begin with. A checkpoint that halves it also takes the image
    back to its top.

    Args:
        start: Images of the ball to begin with.
        batch: The attacked images.
        ball: The ball around each of them.
        limits: Its radius, and how many steps to take at which pace.
        evaluate: Maps images to their point on the climb, and to how much damage they do.
        first_iteration: Int32 number that the candidates' iterations count from.
    """
    steps = tf.shape(limits.windows)[0] - 1

    def step(done: tf.Tensor, climb: Climb) -> tuple[tf.Tensor, Climb]:
        point, evaluation = evaluate(climb.images)
        candidate = make_candidate(climb.images, evaluation, first_iteration + done)
        top = choose(point.objective > climb.top.objective, point, climb.top)
        rose = point.objective > climb.last.objective
        pace, halved = adapt(climb.pace, rose, top.objective, limits.windows[done], limits.rho)
        point = choose(halved, top, point)
        weight = tf.where(done == 0, 1.0, _NEW_STEP_WEIGHT)
        images = _moved(point, climb.last.images, pace.step_size, weight, batch, ball, limits)
        is_zero = tf.reduce_all(point.gradient == 0.0, axis=(1, 2, 3))
        is_stuck = tf.where(done == 0, is_zero, climb.is_stuck)
        best = better(climb.best, candidate)
        return done + 1, Climb(images, point, top, pace, best, is_stuck)

    # One turn more than steps: the last iterate is evaluated, too.
    _, climb = tf.while_loop(
        lambda done, _: done <= steps, step, (0, _initial_climb(start, batch, limits))
    )
    return climb


def _initial_climb(start: tf.Tensor, batch: AttackBatch, limits: Limits) -> Climb:
    infinite = tf.fill(tf.shape(batch.labels), math.inf)
    nowhere = tf.zeros_like(start)
    return Climb(
        start,
        last=Point(start, infinite, nowhere),
        top=Point(start, -infinite, nowhere),
        pace=initial_pace(2.0 * limits.epsilon, tf.shape(batch.labels)),
        best=worst_candidate(start),
        is_stuck=tf.zeros_like(batch.labels, tf.bool),
    )


def _moved(
    point: Point,
    last_images: tf.Tensor,
    step_size: tf.Tensor,
    weight: tf.Tensor,
    batch: AttackBatch,
    ball: Ball,
    limits: Limits,
) -> tf.Tensor:
    def allowed(images: tf.Tensor) -> tf.Tensor:
        change = ball.project(images - batch.images, limits.epsilon)
        # Clipping brings no pixel further from the image, so this stays in the ball.
        return tf.clip_by_value(batch.images + change, 0.0, 1.0)

    step = step_size[:, None, None, None] * ball.steepest(point.gradient)
    new_change = allowed(point.images + step) - point.images
    last_change = point.images - last_images
    return allowed(point.images + weight * new_change + (1.0 - weight) * last_change)
