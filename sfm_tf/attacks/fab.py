"""The fast adaptive boundary attack, FAB, for the smallest perturbation in L-infinity or L2."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    COUNT,
    NORM,
    NOT_FOUND,
    POSITIVE,
    SEED,
    SHARE,
    AttackBatch,
    BatchOutcome,
    CompiledAttack,
    Option,
    choose,
    usable_gradient,
)
from sfm_tf.attacks.norm_balls import BALLS, sample_points
from sfm_tf.attacks.seeds import numbered
from sfm_tf.models.logit_losses import stable_cross_entropy, without_label

_IMAGE_AXES = (1, 2, 3)
# Of the authors' code: at two distances of zero it makes alpha 1/2, and nothing NaN.
_SMALLEST_NORM = 1e-8


class Hyperplane(NamedTuple):
    """One linear function per image; it is zero on the hyperplane.

    Attributes:
        values: Float32 `(batch,)`: the functions at some images.
        gradients: Float32 of the images' shape.
    """

    values: tf.Tensor
    gradients: tf.Tensor


class HyperplaneGeometry(NamedTuple):
    """What an attack that aims at hyperplanes needs to know of a norm.

    Attributes:
        way: Maps images in [0, 1] `(batch, height, width, channels)` and their hyperplanes to the
            smallest perturbations that reach the hyperplanes and leave the images in [0, 1]. Where
            there is none, each pixel goes to the end of [0, 1] nearer to the hyperplane. A pixel
            of gradient zero stays as it is.
        norm: Maps perturbations to their norms, `(batch,)`.
        dual_norm: Maps gradients to their dual norms, `(batch,)`: without limits on the pixels,
            the distance to a hyperplane is |value| / dual norm.
    """

    way: Callable[[tf.Tensor, Hyperplane], tf.Tensor]
    norm: Callable[[tf.Tensor], tf.Tensor]
    dual_norm: Callable[[tf.Tensor], tf.Tensor]


class _Demand(NamedTuple):
    """By how much the pixels may change, and what that brings.

    Attributes:
        needed: What all pixels together have to bring, `(batch, 1)`.
        slopes: What each brings per unit of its change, `(batch, pixels)`, at most 1.
        rooms: How far each can go, same shape.
        signs: Which way each goes: -1, 0 or 1, same shape.
    """

    needed: tf.Tensor
    slopes: tf.Tensor
    rooms: tf.Tensor
    signs: tf.Tensor


def _way_linf(images: tf.Tensor, plane: Hyperplane) -> tf.Tensor:
    demand = _demand(images, plane)
    level = _level(demand.rooms, demand.slopes, demand)
    change = demand.signs * tf.minimum(level, demand.rooms)
    return tf.reshape(change, tf.shape(images))


def _way_l2(images: tf.Tensor, plane: Hyperplane) -> tf.Tensor:
    demand = _demand(images, plane)
    limits = tf.math.divide_no_nan(demand.rooms, demand.slopes)
    level = _level(limits, demand.slopes**2, demand)
    # An infinite level leaves pixels that do not count alone.
    lengths = tf.math.multiply_no_nan(level, demand.slopes)
    change = demand.signs * tf.minimum(lengths, demand.rooms)
    return tf.reshape(change, tf.shape(images))


def _demand(images: tf.Tensor, plane: Hyperplane) -> _Demand:
    pixels = tf.reshape(images, (tf.shape(images)[0], -1))
    gradients = tf.reshape(plane.gradients, tf.shape(pixels))
    # Scaled to a largest slope of 1: the squares of a small gradient would underflow to zero.
    largest = tf.reduce_max(tf.abs(gradients), axis=1, keepdims=True)
    signs = -tf.sign(plane.values)[:, None] * tf.sign(gradients)
    return _Demand(
        needed=tf.math.divide_no_nan(tf.abs(plane.values)[:, None], largest),
        slopes=tf.math.divide_no_nan(tf.abs(gradients), largest),
        rooms=tf.where(signs > 0.0, 1.0 - pixels, pixels),
        signs=signs,
    )


def _level(limits: tf.Tensor, weights: tf.Tensor, demand: _Demand) -> tf.Tensor:
    """Returns the level at which sum(weights * min(level, limits)) is `needed`, `(batch, 1)`.

    That sum is concave and piecewise linear in the level, so Newton's method from zero never goes
    too far, and it ends, exactly, once no further pixel has come to its limit. If the sum never
    becomes that large, the level is no less than the largest limit.
    """
    at_limit = demand.slopes * demand.rooms

    def rise(level: tf.Tensor, is_rising: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        del is_rising
        is_full = limits <= level
        brought = tf.reduce_sum(tf.where(is_full, at_limit, 0.0), axis=1, keepdims=True)
        steepness = tf.reduce_sum(tf.where(is_full, 0.0, weights), axis=1, keepdims=True)
        higher = tf.math.divide_no_nan(demand.needed - brought, steepness)
        return tf.maximum(level, higher), tf.reduce_any(higher > level)

    level, _ = tf.while_loop(
        lambda _, is_rising: is_rising, rise, (tf.zeros_like(demand.needed), tf.constant(True))
    )
    return level


def _linf_norm(perturbations: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.abs(perturbations), axis=_IMAGE_AXES)


def _l1_norm(gradients: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.abs(gradients), axis=_IMAGE_AXES)


def _l2_norm(values: tf.Tensor) -> tf.Tensor:
    largest = _linf_norm(values)
    scaled = tf.math.divide_no_nan(values, largest[:, None, None, None])
    return largest * tf.sqrt(tf.reduce_sum(scaled**2, axis=_IMAGE_AXES))


_LINF = HyperplaneGeometry(_way_linf, _linf_norm, _l1_norm)
_L2 = HyperplaneGeometry(_way_l2, _l2_norm, _l2_norm)

HYPERPLANE_GEOMETRIES: Mapping[float | str, HyperplaneGeometry] = {
    math.inf: _LINF,
    "inf": _LINF,
    2: _L2,
}
"""The geometries by the norm's order, as ART names it.

The ways are the projections of Croce and Hein, "Minimally distorted adversarial examples with a
fast adaptive boundary attack", 2020, section 2.2. The authors' code sorts the pixels by when they
come to their limits; Newton's method comes to the same in four to nine sums over them.
"""


def biased_step(
    geometry: HyperplaneGeometry,
    images: tf.Tensor,
    points: tf.Tensor,
    plane: Hyperplane,
    alpha_max: tf.Tensor,
    eta: tf.Tensor,
) -> tf.Tensor:
    """Returns points next to the hyperplane, drawn towards its points nearest to the images.

    Croce and Hein 2020, section 2.3: the projections of `points` and of `images`, mixed with the
    weights 1 - alpha and alpha, where alpha is the share of the points' distance in the sum of both
    distances, but at most `alpha_max`. They are not limited to [0, 1].

    Args:
        geometry: The norm that measures distances.
        images: Float32 in [0, 1], `(batch, height, width, channels)`.
        points: Float32 in [0, 1], same shape.
        plane: The hyperplanes, with their values at `points`.
        alpha_max: Float32 scalar in [0, 1].
        eta: Float32 scalar, at least 1: by which factor to exceed the way to the hyperplane.
    """
    product = tf.reduce_sum(plane.gradients * (images - points), axis=_IMAGE_AXES)
    plane_from_images = plane._replace(values=plane.values + product)
    ways = (geometry.way(points, plane), geometry.way(images, plane_from_images))
    length, image_length = (tf.maximum(geometry.norm(way), _SMALLEST_NORM) for way in ways)
    alpha = tf.minimum(length / (length + image_length), alpha_max)[:, None, None, None]
    return (1.0 - alpha) * (points + eta * ways[0]) + alpha * (images + eta * ways[1])


_FAST_ADAPTIVE_BOUNDARY_IMAGE_AXES = (1, 2, 3)
# A restart begins within half the smallest norm found so far, or half of the authors' default.
_RESTART_SHARE = 0.5
_DEFAULT_NORMS: Mapping[float | str, float] = {math.inf: 0.3, "inf": 0.3, 2: 1.0}
_FINAL_STEPS = 3
# Where the margin is linear, its estimated zero would fall on either side by rounding alone.
_FINAL_OVERSHOOT = 0.1
# How far float32 logits may differ between batch sizes, as a share of the largest of them.
_ROUNDING = 1e-6

_CLASSES = Option(SEED.is_valid, "an integer of at least 0")
_OVERSHOOT = Option(
    lambda value: POSITIVE.is_valid(value) and value >= 1.0, "a finite number of at least 1"
)


class _Settings(NamedTuple):
    """The options that can change without compiling anew, as scalar tensors."""

    iterations: tf.Tensor
    restarts: tf.Tensor
    target_classes: tf.Tensor
    alpha_max: tf.Tensor
    eta: tf.Tensor
    beta: tf.Tensor


_SETTING_TYPES = _Settings(tf.int32, tf.int32, tf.int32, tf.float32, tf.float32, tf.float32)


class _Mode(NamedTuple):
    """What the compiled search is specialised for."""

    norm: float | str
    is_targeted: bool


class _Best(NamedTuple):
    """Per image, the closest adversarial one so far; at infinity as long as there is none."""

    images: tf.Tensor
    distance: tf.Tensor
    iterations: tf.Tensor


class _State(NamedTuple):
    """`points` are where to linearise next; `is_stuck` tells whose first gradient was zero."""

    points: tf.Tensor
    best: _Best
    is_stuck: tf.Tensor


class _End(NamedTuple):
    """One end of a segment, with the model's logits there."""

    images: tf.Tensor
    logits: tf.Tensor


class FastAdaptiveBoundary(CompiledAttack):
    """Follows the decision boundary to where it is closest to the image: FAB and FAB-T.

    Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
    2020, Algorithm 1. Each step takes the difference of two logits for a linear function, projects
    the iterate and the image onto its zeros within [0, 1], and moves to a point between the two
    projections, beyond the boundary by the factor `eta`. An adversarial iterate is kept if it is
    the closest so far, and goes back towards the image by the factor `beta`. The targeted form, of
    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020, goes for one wrong class after another and takes one gradient per
    step; the untargeted one takes one per class, to go for the class whose hyperplane is nearest.
    The defaults are those of AutoAttack.

    There is no radius: an image for which no adversarial one was found comes back unchanged, with
    `NOT_FOUND` iterations; one that the model gets wrong to begin with, with 0 of them.

    Unlike the authors' code, each run continues from the best of all before, whatever its target;
    and restarts begin inside the ball of half its norm or, where nothing was found yet, of half 0.3
    (L-infinity) or 1 (L2), by image. The search on the line to the image that ends the attack in
    the paper, and that AutoAttack leaves out, is always made: in three steps, which go beyond the
    estimated boundary by a tenth of what is left, but never so close to it that rounding, which
    differs between batch sizes and devices, could bring an image back to its label.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm to minimise: `math.inf`, "inf" or 2.
        iterations: Number of steps of a run.
        restarts: Number of runs, for each target class; all but the first start at random points.
        target_classes: How many classes the attack goes for, those that the model deems most
            likely on the image itself first; a model may have fewer. 0 for the untargeted form.
        alpha_max: Largest share of the image's own projection in a step.
        eta: Factor by which a step exceeds the way to the hyperplane.
        beta: What an adversarial iterate keeps of its perturbation; at 1 it stays.
        batch_size: Images attacked at a time.
        seed: Seed of the random starts.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "norm": NORM,
        "iterations": COUNT,
        "restarts": COUNT,
        "target_classes": _CLASSES,
        "alpha_max": SHARE,
        "eta": _OVERSHOOT,
        "beta": SHARE,
        "batch_size": COUNT,
        "seed": SEED,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **CompiledAttack.defaults,
        "iterations": 100,
        "restarts": 1,
        "target_classes": 9,
        "alpha_max": 0.1,
        "eta": 1.05,
        "beta": 0.9,
    }

    epsilon = math.inf

    iterations: int
    restarts: int
    target_classes: int
    alpha_max: float
    eta: float
    beta: float

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Sets the options and prepares the search, which is compiled at the first batch."""
        super().__init__(estimator, **options)
        # A partial, because TensorFlow counts compilations by the code of a function.
        self._compiled_search = tf.function(functools.partial(self._search), autograph=False)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        values = (getattr(self, name) for name in _Settings._fields)
        settings = _Settings(*map(tf.constant, values, _SETTING_TYPES))
        return self._compiled_search(batch, settings, _Mode(self.norm, self.target_classes > 0))

    def _search(self, batch: AttackBatch, settings: _Settings, mode: _Mode) -> BatchOutcome:
        logits = self._logits(batch.images)
        others = self.estimator.nb_classes - 1
        targets = tf.math.top_k(without_label(logits, batch.labels), others).indices
        is_known = tf.argmax(logits, axis=1) == batch.labels
        distance = tf.where(is_known, math.inf, 0.0)
        best = _Best(batch.images, distance, tf.where(is_known, NOT_FOUND, 0))
        steps = settings.iterations * settings.restarts
        if mode.is_targeted:
            steps *= tf.minimum(settings.target_classes, others)
        _, state = tf.while_loop(
            lambda done, _: (done < steps) & tf.reduce_any(is_known),
            functools.partial(self._step, batch, targets, settings, mode),
            (0, _State(batch.images, best, tf.zeros_like(is_known))),
        )
        end = self._shorten(batch, logits, state.best.images)
        loss = stable_cross_entropy(end.logits, batch.labels)
        return BatchOutcome(end.images, loss, state.best.iterations, is_known & state.is_stuck)

    def _step(
        self,
        batch: AttackBatch,
        targets: tf.Tensor,
        settings: _Settings,
        mode: _Mode,
        done: tf.Tensor,
        state: _State,
    ) -> tuple[tf.Tensor, _State]:
        geometry = HYPERPLANE_GEOMETRIES[mode.norm]
        run = done // settings.iterations
        points = tf.cond(
            done % settings.iterations == 0,
            lambda: _start(batch, run, state.best.distance, settings, mode),
            lambda: state.points,
        )
        if mode.is_targeted:
            plane = self._plane(points, batch, tf.gather(targets, run // settings.restarts, axis=1))
        else:
            plane = self._nearest_plane(points, batch, geometry)
        is_zero = tf.reduce_all(plane.gradients == 0.0, axis=_FAST_ADAPTIVE_BOUNDARY_IMAGE_AXES)
        moved = biased_step(geometry, batch.images, points, plane, settings.alpha_max, settings.eta)
        moved = _allowed(moved, batch)
        fooled = tf.argmax(self._logits(moved), axis=1) != batch.labels
        distance = geometry.norm(moved - batch.images)
        new = _Best(moved, distance, tf.fill(tf.shape(distance), done + 1))
        best = choose(fooled & (distance < state.best.distance), new, state.best)
        back = batch.images + settings.beta * (moved - batch.images)
        is_stuck = tf.where(done == 0, is_zero, state.is_stuck)
        return done + 1, _State(choose(fooled, back, moved), best, is_stuck)

    def _plane(self, images: tf.Tensor, batch: AttackBatch, target: tf.Tensor) -> Hyperplane:
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = self._logits(images)
            values = tf.gather(logits, target, batch_dims=1)
            values -= tf.gather(logits, batch.labels, batch_dims=1)
        return Hyperplane(values, usable_gradient(tape.gradient(values, images), batch.mask))

    def _nearest_plane(
        self, images: tf.Tensor, batch: AttackBatch, geometry: HyperplaneGeometry
    ) -> Hyperplane:
        # One class after the other, because all gradients at once may not fit into memory.
        def compare(target: tf.Tensor, nearest: Hyperplane, distance: tf.Tensor) -> Any:
            targets = tf.fill(tf.shape(batch.labels), target)
            plane = self._plane(images, batch, targets)
            other = tf.abs(plane.values) / geometry.dual_norm(plane.gradients)
            is_nearer = (targets != batch.labels) & (other < distance)
            distance = tf.where(is_nearer, other, distance)
            return target + 1, choose(is_nearer, plane, nearest), distance

        zeros = tf.zeros_like(images[:, 0, 0, 0])
        nowhere = (Hyperplane(zeros, tf.zeros_like(images)), zeros + math.inf)
        _, nearest, _ = tf.while_loop(
            lambda target, *_: target < self.estimator.nb_classes,
            compare,
            (tf.constant(0, batch.labels.dtype), *nowhere),
        )
        return nearest

    def _shorten(self, batch: AttackBatch, logits: tf.Tensor, images: tf.Tensor) -> _End:
        def shorten(done: tf.Tensor, inside: _End, outside: _End) -> Any:
            share = _crossing(inside.logits, outside.logits, batch.labels)
            images = inside.images + share * (outside.images - inside.images)
            between = _End(images, self._logits(images))
            fooled = _clearly_leaves(between.logits, batch.labels)
            return done + 1, choose(fooled, inside, between), choose(fooled, between, outside)

        ends = (_End(batch.images, logits), _End(images, self._logits(images)))
        _, _, outside = tf.while_loop(lambda done, *_: done < _FINAL_STEPS, shorten, (0, *ends))
        return outside


def _start(
    batch: AttackBatch, run: tf.Tensor, distance: tf.Tensor, settings: _Settings, mode: _Mode
) -> tf.Tensor:
    seeds = numbered(batch.seeds, run)
    points = sample_points(BALLS[mode.norm], batch.images.shape[1:], seeds)
    is_found = tf.math.is_finite(distance)
    radius = _RESTART_SHARE * tf.where(is_found, distance, _DEFAULT_NORMS[mode.norm])
    random = _allowed(batch.images + _per_pixel(radius) * points, batch)
    return tf.where(run % settings.restarts > 0, random, batch.images)


def _allowed(images: tf.Tensor, batch: AttackBatch) -> tf.Tensor:
    return tf.where(batch.mask != 0.0, tf.clip_by_value(images, 0.0, 1.0), batch.images)


def _crossing(inside: tf.Tensor, outside: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns at which share of the way the label clearly falls behind if the logits are linear."""
    predicted = tf.argmax(outside, axis=1)
    ahead, behind = (
        tf.gather(logits, labels, batch_dims=1) - tf.gather(logits, predicted, batch_dims=1)
        for logits in (inside, outside)
    )
    share = tf.math.divide_no_nan(ahead + 2.0 * _rounding(outside), ahead - behind)
    return _per_pixel(tf.minimum(share + _FINAL_OVERSHOOT * (1.0 - share), 1.0))


def _clearly_leaves(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    lead = tf.reduce_max(logits, axis=1) - tf.gather(logits, labels, batch_dims=1)
    return lead > _rounding(logits)


def _rounding(logits: tf.Tensor) -> tf.Tensor:
    return _ROUNDING * tf.reduce_max(tf.abs(logits), axis=1)


def _per_pixel(values: tf.Tensor) -> tf.Tensor:
    return values[:, None, None, None]
