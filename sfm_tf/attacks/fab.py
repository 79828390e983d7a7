"""The fast adaptive boundary attack, FAB, for the smallest perturbation in L-infinity or L2.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
2020, Algorithm 1, whose names this module uses: x_orig for the image, x for iterates, delta for the
projections onto a hyperplane, alpha, eta and beta, and u for the distance of the best, x_out.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    COUNT,
    NOT_FOUND,
    POSITIVE,
    SEED,
    SHARE,
    AttackBatch,
    BatchOutcome,
    CompiledAttack,
    ValueKind,
    choose,
    is_zero,
    per_pixel,
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
        delta: Maps images in [0, 1] `(batch, height, width, channels)` and their hyperplanes to the
            smallest perturbations that reach the hyperplanes and leave the images in [0, 1]. Where
            there is none, each pixel goes to the end of [0, 1] nearer to the hyperplane. A pixel
            of gradient zero stays as it is.
        norm: Maps perturbations to their norms, `(batch,)`.
        dual_norm: Maps gradients to their dual norms, `(batch,)`: without limits on the pixels,
            the distance to a hyperplane is |value| / dual norm.
    """

    delta: Callable[[tf.Tensor, Hyperplane], tf.Tensor]
    norm: Callable[[tf.Tensor], tf.Tensor]
    dual_norm: Callable[[tf.Tensor], tf.Tensor]


class _BoxProjection(NamedTuple):
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


def _delta_linf(images: tf.Tensor, plane: Hyperplane) -> tf.Tensor:
    box = _box_projection(images, plane)
    level = _level(box.rooms, box.slopes, box)
    change = box.signs * tf.minimum(level, box.rooms)
    return tf.reshape(change, tf.shape(images))


def _delta_l2(images: tf.Tensor, plane: Hyperplane) -> tf.Tensor:
    box = _box_projection(images, plane)
    limits = tf.math.divide_no_nan(box.rooms, box.slopes)
    level = _level(limits, box.slopes**2, box)
    # An infinite level leaves pixels that do not count alone.
    lengths = tf.math.multiply_no_nan(level, box.slopes)
    change = box.signs * tf.minimum(lengths, box.rooms)
    return tf.reshape(change, tf.shape(images))


def _box_projection(images: tf.Tensor, plane: Hyperplane) -> _BoxProjection:
    pixels = tf.reshape(images, (tf.shape(images)[0], -1))
    gradients = tf.reshape(plane.gradients, tf.shape(pixels))
    # Scaled to a largest slope of 1: the squares of a small gradient would underflow to zero.
    largest = tf.reduce_max(tf.abs(gradients), axis=1, keepdims=True)
    signs = -tf.sign(plane.values)[:, None] * tf.sign(gradients)
    return _BoxProjection(
        needed=tf.math.divide_no_nan(tf.abs(plane.values)[:, None], largest),
        slopes=tf.math.divide_no_nan(tf.abs(gradients), largest),
        rooms=tf.where(signs > 0.0, 1.0 - pixels, pixels),
        signs=signs,
    )


def _level(limits: tf.Tensor, weights: tf.Tensor, box: _BoxProjection) -> tf.Tensor:
    """Returns the level at which sum(weights * min(level, limits)) is `needed`, `(batch, 1)`.

    That sum is concave and piecewise linear in the level, so Newton's method from zero never goes
    too far, and it ends, exactly, once no further pixel has come to its limit. If the sum never
    becomes that large, the level is no less than the largest limit.
    """
    at_limit = box.slopes * box.rooms

    def rise(level: tf.Tensor, is_rising: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        del is_rising
        is_full = limits <= level
        brought = tf.reduce_sum(tf.where(is_full, at_limit, 0.0), axis=1, keepdims=True)
        steepness = tf.reduce_sum(tf.where(is_full, 0.0, weights), axis=1, keepdims=True)
        higher = tf.math.divide_no_nan(box.needed - brought, steepness)
        return tf.maximum(level, higher), tf.reduce_any(higher > level)

    level, _ = tf.while_loop(
        lambda _, is_rising: is_rising, rise, (tf.zeros_like(box.needed), tf.constant(True))
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


_LINF = HyperplaneGeometry(_delta_linf, _linf_norm, _l1_norm)
_L2 = HyperplaneGeometry(_delta_l2, _l2_norm, _l2_norm)

HYPERPLANE_GEOMETRIES: Mapping[float | str, HyperplaneGeometry] = {
    math.inf: _LINF,
    "inf": _LINF,
    2: _L2,
}
"""The geometries by the norm's order, as ART names it.

The projections are those of section 2.2. The authors' code sorts the pixels by when they come to
their limits; Newton's method comes to the same in four to nine sums over them.
"""


def biased_step(
    geometry: HyperplaneGeometry,
    x_orig: tf.Tensor,
    x: tf.Tensor,
    plane: Hyperplane,
    alpha_max: tf.Tensor,
    eta: tf.Tensor,
) -> tf.Tensor:
    """Returns points next to the hyperplane, drawn towards its points nearest to the images.

    Section 2.3: (1 - alpha) * (x + eta * delta) + alpha * (x_orig + eta * delta_orig), where alpha
    is the share of |delta| in |delta| + |delta_orig|, but at most `alpha_max`. They are not limited
    to [0, 1].

    Args:
        geometry: The norm that measures distances.
        x_orig: Float32 in [0, 1], `(batch, height, width, channels)`.
        x: Float32 in [0, 1], same shape.
        plane: The hyperplanes, with their values at `x`.
        alpha_max: Float32 scalar in [0, 1].
        eta: Float32 scalar, at least 1: the overshoot.
    """
    product = tf.reduce_sum(plane.gradients * (x_orig - x), axis=_IMAGE_AXES)
    delta = geometry.delta(x, plane)
    delta_orig = geometry.delta(x_orig, plane._replace(values=plane.values + product))
    length, length_orig = (
        tf.maximum(geometry.norm(d), _SMALLEST_NORM) for d in (delta, delta_orig)
    )
    alpha = per_pixel(tf.minimum(length / (length + length_orig), alpha_max))
    return (1.0 - alpha) * (x + eta * delta) + alpha * (x_orig + eta * delta_orig)


# A restart begins within half the smallest norm found so far, or half of the authors' default.
_RESTART_SHARE = 0.5
_DEFAULT_NORMS: Mapping[float | str, float] = {math.inf: 0.3, "inf": 0.3, 2: 1.0}
_FINAL_STEPS = 3
# Where the margin is linear, its estimated zero would fall on either side by rounding alone.
_FINAL_OVERSHOOT = 0.1
# How far float32 logits may differ between batch sizes, as a share of the largest of them.
_ROUNDING = 1e-6

_ETA = ValueKind(
    lambda value: POSITIVE.is_valid(value) and value >= 1.0, "a finite number of at least 1"
)
_TARGET_CLASSES = ValueKind(SEED.is_valid, "an integer of at least 0")


class _Settings(NamedTuple):
    """The options that can change without compiling anew, as scalar tensors."""

    iterations: tf.Tensor
    restarts: tf.Tensor
    target_classes: tf.Tensor
    alpha_max: tf.Tensor
    eta: tf.Tensor
    beta: tf.Tensor


_SETTING_TYPES = _Settings(tf.int32, tf.int32, tf.int32, tf.float32, tf.float32, tf.float32)


class _Best(NamedTuple):
    """Per image x_out, the closest adversarial one so far; u is infinite until there is one."""

    x_out: tf.Tensor
    u: tf.Tensor
    iterations: tf.Tensor


class _State(NamedTuple):
    """The iterates, the best so far, and whose first gradient was zero."""

    x: tf.Tensor
    best: _Best
    is_stuck: tf.Tensor


class _End(NamedTuple):
    """One end of a segment, with the model's logits there."""

    images: tf.Tensor
    logits: tf.Tensor


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class FastAdaptiveBoundary(CompiledAttack):
    """Follows the decision boundary to where it is closest to the image: FAB and FAB-T.

    Each step linearises the difference of two logits, projects the iterate and the image onto the
    hyperplane where it is zero, within [0, 1], and moves to a point between the two projections,
    beyond the boundary by the factor `eta`. An adversarial iterate is kept if it is the closest so
    far, and moves back towards the image by the factor `beta`. The untargeted form takes one
    gradient per class and goes for the class whose hyperplane is nearest. The targeted form, FAB-T
    (Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020), goes for one wrong class after another and takes one gradient
    per step. The defaults are those of AutoAttack.

    There is no radius. If no adversarial image was found, the image comes back unchanged with
    `NOT_FOUND` iterations; if the model gets it wrong without an attack, with 0 iterations.

    There are two differences to the authors' code. Each run continues from the best image of all
    runs before, whatever their targets; a restart begins inside the ball of half its norm or, if
    nothing was found yet, of half 0.3 (L-infinity) or 1 (L2). And the final search on the line to
    the image, which the paper has and AutoAttack leaves out, is always made. Its three steps go
    beyond the estimated boundary by a tenth of the rest, and never so close to it that rounding,
    which differs between batch sizes and devices, could bring an image back to its label.

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

    epsilon: ClassVar[float] = math.inf
    targeted: ClassVar[bool] = False
    iterations: int = 100
    restarts: int = 1
    target_classes: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self, estimator: TensorFlowV2Classifier) -> None:
        """Prepares the search, which is compiled at the first batch."""
        super().__post_init__(estimator)
        self._compiled_search = self._compiled(self._search, "norm", "_is_targeted")

    def _check_params(self) -> None:
        super()._check_params()
        self._check(COUNT, "iterations", "restarts")
        self._check(_TARGET_CLASSES, "target_classes")
        self._check(SHARE, "alpha_max", "beta")
        self._check(_ETA, "eta")

    @property
    def _is_targeted(self) -> bool:
        return self.target_classes > 0

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        values = (getattr(self, name) for name in _Settings._fields)
        settings = _Settings(*map(tf.constant, values, _SETTING_TYPES))
        return self._compiled_search(batch, settings)

    def _search(self, batch: AttackBatch, settings: _Settings) -> BatchOutcome:
        logits = self._logits(batch.images)
        others = self.estimator.nb_classes - 1
        targets = tf.math.top_k(without_label(logits, batch.labels), others).indices
        is_right = tf.argmax(logits, axis=1) == batch.labels
        u = tf.where(is_right, math.inf, 0.0)
        best = _Best(batch.images, u, tf.where(is_right, NOT_FOUND, 0))
        steps = settings.iterations * settings.restarts
        if self._is_targeted:
            steps *= tf.minimum(settings.target_classes, others)

        def step(done: tf.Tensor, state: _State) -> tuple[tf.Tensor, _State]:
            run = done // settings.iterations
            target = tf.gather(targets, run // settings.restarts, axis=1)
            return done + 1, self._step(batch, target, settings, done, state)

        _, state = tf.while_loop(
            lambda done, _: (done < steps) & tf.reduce_any(is_right),
            step,
            (0, _State(batch.images, best, tf.zeros_like(is_right))),
        )
        end = self._shorten(batch, logits, state.best.x_out)
        loss = stable_cross_entropy(end.logits, batch.labels)
        return BatchOutcome(end.images, loss, state.best.iterations, is_right & state.is_stuck)

    def _step(
        self,
        batch: AttackBatch,
        target: tf.Tensor,
        settings: _Settings,
        done: tf.Tensor,
        state: _State,
    ) -> _State:
        geometry, x_orig = HYPERPLANE_GEOMETRIES[self.norm], batch.images
        x = tf.cond(
            done % settings.iterations == 0,
            lambda: self._start(batch, done // settings.iterations, state.best.u, settings),
            lambda: state.x,
        )
        if self._is_targeted:
            plane = self._plane(x, batch, target)
        else:
            plane = self._nearest_plane(x, batch, geometry)
        is_stuck = tf.where(done == 0, is_zero(plane.gradients), state.is_stuck)
        x = biased_step(geometry, x_orig, x, plane, settings.alpha_max, settings.eta)
        x = _allowed(x, batch)
        is_adversarial = tf.argmax(self._logits(x), axis=1) != batch.labels
        distance = geometry.norm(x - x_orig)
        new = _Best(x, distance, tf.fill(tf.shape(distance), done + 1))
        best = choose(is_adversarial & (distance < state.best.u), new, state.best)
        backward = x_orig + settings.beta * (x - x_orig)
        return _State(choose(is_adversarial, backward, x), best, is_stuck)

    def _start(
        self, batch: AttackBatch, run: tf.Tensor, u: tf.Tensor, settings: _Settings
    ) -> tf.Tensor:
        seeds = numbered(batch.seeds, run)
        points = sample_points(BALLS[self.norm], batch.images.shape[1:], seeds)
        is_found = tf.math.is_finite(u)
        radius = _RESTART_SHARE * tf.where(is_found, u, _DEFAULT_NORMS[self.norm])
        random = _allowed(batch.images + per_pixel(radius) * points, batch)
        return tf.where(run % settings.restarts > 0, random, batch.images)

    def _plane(self, x: tf.Tensor, batch: AttackBatch, target: tf.Tensor) -> Hyperplane:
        """Returns the hyperplane between each image's label and its target class."""
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = self._logits(x)
            values = tf.gather(logits, target, batch_dims=1)
            values -= tf.gather(logits, batch.labels, batch_dims=1)
        return Hyperplane(values, usable_gradient(tape.gradient(values, x), batch.mask))

    def _nearest_plane(
        self, x: tf.Tensor, batch: AttackBatch, geometry: HyperplaneGeometry
    ) -> Hyperplane:
        # One class after the other, because all gradients at once may not fit into memory.
        def compare(target: tf.Tensor, nearest: Hyperplane, distance: tf.Tensor) -> Any:
            targets = tf.fill(tf.shape(batch.labels), target)
            plane = self._plane(x, batch, targets)
            other = tf.abs(plane.values) / geometry.dual_norm(plane.gradients)
            is_nearer = (targets != batch.labels) & (other < distance)
            distance = tf.where(is_nearer, other, distance)
            return target + 1, choose(is_nearer, plane, nearest), distance

        zeros = tf.zeros_like(x[:, 0, 0, 0])
        none = (Hyperplane(zeros, tf.zeros_like(x)), zeros + math.inf)
        _, nearest, _ = tf.while_loop(
            lambda target, *_: target < self.estimator.nb_classes,
            compare,
            (tf.constant(0, batch.labels.dtype), *none),
        )
        return nearest

    def _shorten(self, batch: AttackBatch, logits: tf.Tensor, images: tf.Tensor) -> _End:
        """Makes the final search on the line from the image to `images`."""

        def shorten(done: tf.Tensor, inside: _End, outside: _End) -> Any:
            share = _crossing(inside.logits, outside.logits, batch.labels)
            images = inside.images + share * (outside.images - inside.images)
            between = _End(images, self._logits(images))
            fooled = _clearly_leaves(between.logits, batch.labels)
            return done + 1, choose(fooled, inside, between), choose(fooled, between, outside)

        ends = (_End(batch.images, logits), _End(images, self._logits(images)))
        _, _, outside = tf.while_loop(lambda done, *_: done < _FINAL_STEPS, shorten, (0, *ends))
        return outside


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
    return per_pixel(tf.minimum(share + _FINAL_OVERSHOOT * (1.0 - share), 1.0))


def _clearly_leaves(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    lead = tf.reduce_max(logits, axis=1) - tf.gather(logits, labels, batch_dims=1)
    return lead > _rounding(logits)


def _rounding(logits: tf.Tensor) -> tf.Tensor:
    return _ROUNDING * tf.reduce_max(tf.abs(logits), axis=1)
