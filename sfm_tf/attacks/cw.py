"""The attack of Carlini and Wagner for the smallest perturbation in the L2 norm."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack import (
    COUNT,
    FLAG,
    NOT_FOUND,
    NOT_NEGATIVE,
    POSITIVE,
    AttackBatch,
    BatchOutcome,
    CompiledAttack,
    choose,
    is_zero,
    per_pixel,
    usable_gradient,
)
from sfm_tf.models.logit_losses import cross_entropy, margin

# Kingma and Ba 2015: beta_1, beta_2 and epsilon.
_BETA_1 = 0.9
_BETA_2 = 0.999
_ADAM_EPSILON = 1e-8


class Moments(NamedTuple):
    """Running means of the gradient and of its square, of the points' shape."""

    mean: tf.Tensor
    square: tf.Tensor


def initial_moments(points: tf.Tensor) -> Moments:
    """Returns the moments before the first step."""
    return Moments(tf.zeros_like(points), tf.zeros_like(points))


def adam_step(
    moments: Moments, gradient: tf.Tensor, done: tf.Tensor, learning_rate: tf.Tensor
) -> tuple[tf.Tensor, Moments]:
    """Returns what to add to the points, and the new moments.

    Kingma and Ba, "Adam: a method for stochastic optimization", 2015, section 2, in the more
    efficient order of its last paragraph and with its settings.

    Args:
        moments: The moments so far.
        gradient: Float32 of any shape.
        done: Int32 number of steps already taken.
        learning_rate: Size of the step, about the most that a point moves.
    """
    count = tf.cast(done + 1, tf.float32)
    mean = _BETA_1 * moments.mean + (1.0 - _BETA_1) * gradient
    square = _BETA_2 * moments.square + (1.0 - _BETA_2) * gradient**2
    size = learning_rate * tf.sqrt(1.0 - _BETA_2**count) / (1.0 - _BETA_1**count)
    return -size * mean / (tf.sqrt(square) + _ADAM_EPSILON), Moments(mean, square)


PAPER_SETTINGS: Mapping[str, Any] = {
    "binary_search_steps": 5,
    "iterations": 20,
    "initial_constant": 0.1,
}
"""The short search of Yu et al. 2022, section 6.1 (3), which states no learning rate."""

STANDARD_SETTINGS: Mapping[str, Any] = {
    "binary_search_steps": 9,
    "iterations": 1000,
    "initial_constant": 0.001,
}
"""What evaluations usually run; the reference implementation has up to 10 000 iterations."""

_IMAGE_AXES = (1, 2, 3)
# The reference's: keeps the inverse of tanh finite for black and white pixels.
_SHRINKAGE = 0.999999
_LARGEST_CONSTANT = 1e10
_GROWTH = 10.0
_CHECKS_PER_DESCENT = 10
_NEEDED_PROGRESS = 0.9999


class _Settings(NamedTuple):
    """The options that can change without compiling anew, as scalar tensors."""

    binary_search_steps: tf.Tensor
    iterations: tf.Tensor
    initial_constant: tf.Tensor
    confidence: tf.Tensor
    learning_rate: tf.Tensor
    targeted: tf.Tensor
    abort_early: tf.Tensor


_SETTING_TYPES = _Settings(tf.int32, tf.int32, tf.float32, tf.float32, tf.float32, tf.bool, tf.bool)


class _BinarySearch(NamedTuple):
    """Per image, the c to try next, between the bounds of what failed and what succeeded."""

    c: tf.Tensor
    lower_bound: tf.Tensor
    upper_bound: tf.Tensor


class _Best(NamedTuple):
    """Per image, the closest adversarial one so far."""

    images: tf.Tensor
    squared_distance: tf.Tensor
    iterations: tf.Tensor


class _Hinge(NamedTuple):
    """f = max(margin + confidence, 0) at some images, and the gradient of the margin."""

    f: tf.Tensor
    is_adversarial: tf.Tensor
    gradient: tf.Tensor


class _Descent(NamedTuple):
    """The state of one minimisation.

    Attributes:
        w: The images in the tanh space.
        moments: Those of Adam.
        checked_objective: The objective at the last check of progress.
        is_moving: Whether the image has not stopped early.
        has_succeeded: Whether an adversarial image was met.
        best: Of all minimisations so far.
        is_stuck: Whether the first gradient was zero.
    """

    w: tf.Tensor
    moments: Moments
    checked_objective: tf.Tensor
    is_moving: tf.Tensor
    has_succeeded: tf.Tensor
    best: _Best
    is_stuck: tf.Tensor


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class CarliniWagner(CompiledAttack):
    """Looks for the closest adversarial image in the L2 norm: CW-L2.

    Carlini and Wagner, "Towards evaluating the robustness of neural networks", 2017, sections V
    and VI.A, in the form of their published code. Per image, Adam minimises over w

        ||image(w) - image||^2 + c * max(margin(image(w)) + confidence, 0)

    where image(w) = (tanh(w) + 1) / 2 cannot leave [0, 1] and margin is the label's logit minus the
    largest other one; in a targeted attack, the opposite. A binary search finds the c of each
    image. There is no radius, and an image for which no adversarial one was found comes back
    unchanged, with `NOT_FOUND` iterations. `**PAPER_SETTINGS` or `**STANDARD_SETTINGS` as
    arguments set the length of the search.

    Unlike that code, progress is checked per image, so that no image depends on its batch; the last
    iterate counts too; and no last search repeats the best c, only to find the same images again.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        binary_search_steps: Values of c that are tried for each image.
        iterations: Steps of Adam for each value of c.
        initial_constant: First value of c.
        confidence: By how much the largest other logit must exceed the label's, or in a targeted
            attack the label's the others. 0 asks for a changed prediction only.
        learning_rate: Size of Adam's steps in the tanh space, where a black or white pixel is far
            from any other: 20 steps of 0.01 move a gray pixel by 0.1 and a black one not at all.
        targeted: Whether labels are classes to reach rather than to leave.
        abort_early: Whether an image stops moving once a tenth of the iterations has lowered its
            objective by less than 0.01 %. Faster, but a descent that recovers is missed.
        batch_size: Images attacked at a time.
    """

    norm: ClassVar[float] = 2
    epsilon: ClassVar[float] = math.inf
    seed: ClassVar[int] = 0
    binary_search_steps: int
    iterations: int
    initial_constant: float
    confidence: float = 0.0
    learning_rate: float = 0.01
    abort_early: bool = False

    def __post_init__(self, estimator: TensorFlowV2Classifier) -> None:
        """Prepares the search, which is compiled at the first batch."""
        super().__post_init__(estimator)
        self._compiled_search = self._compiled(self._search)

    def _check_params(self) -> None:
        super()._check_params()
        self._check(COUNT, "binary_search_steps", "iterations")
        self._check(POSITIVE, "initial_constant", "learning_rate")
        self._check(NOT_NEGATIVE, "confidence")
        self._check(FLAG, "abort_early")

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        values = (getattr(self, name) for name in _Settings._fields)
        return self._compiled_search(batch, _Settings(*map(tf.constant, values, _SETTING_TYPES)))

    def _search(self, batch: AttackBatch, settings: _Settings) -> BatchOutcome:
        """Runs the binary search for c, with a minimisation for each."""

        def search(
            done: tf.Tensor, search: _BinarySearch, best: _Best, is_stuck: tf.Tensor
        ) -> tuple[tf.Tensor, _BinarySearch, _Best, tf.Tensor]:
            end = self._minimise(batch, search.c, best, is_stuck, settings)
            return done + 1, _next_c(search, end.has_succeeded), end.best, end.is_stuck

        zeros = tf.zeros_like(batch.labels, tf.float32)
        first = _BinarySearch(zeros + settings.initial_constant, zeros, zeros + math.inf)
        best = _Best(batch.images, zeros + math.inf, tf.fill(tf.shape(zeros), NOT_FOUND))
        _, _, best, is_stuck = tf.while_loop(
            lambda done, *_: done < settings.binary_search_steps,
            search,
            (0, first, best, zeros > 0.0),
        )
        # At distance 0 the image itself, which the way to the tanh space and back has rounded.
        images = tf.where(per_pixel(best.squared_distance > 0.0), best.images, batch.images)
        loss = cross_entropy(self._logits(images), batch.labels)
        return BatchOutcome(images, loss, best.iterations, is_stuck)

    def _minimise(
        self,
        batch: AttackBatch,
        c: tf.Tensor,
        best: _Best,
        is_stuck: tf.Tensor,
        settings: _Settings,
    ) -> _Descent:
        w = tf.atanh((2.0 * batch.images - 1.0) * _SHRINKAGE)
        false, infinite = tf.zeros_like(is_stuck), tf.fill(tf.shape(c), math.inf)
        start = _Descent(w, initial_moments(w), infinite, ~false, false, best, is_stuck)
        # One turn more than steps: the last iterate is evaluated, too.
        _, end = tf.while_loop(
            lambda done, state: (done <= settings.iterations) & tf.reduce_any(state.is_moving),
            functools.partial(self._step, batch, _image(w, batch), c, settings),
            (0, start),
        )
        return end

    def _step(
        self,
        batch: AttackBatch,
        start: tf.Tensor,
        c: tf.Tensor,
        settings: _Settings,
        done: tf.Tensor,
        state: _Descent,
    ) -> tuple[tf.Tensor, _Descent]:
        images = _image(state.w, batch)
        hinge = self._hinge(images, batch, settings)
        change = images - start
        squared_distance = tf.reduce_sum(change**2, axis=_IMAGE_AXES)
        new = _Best(images, squared_distance, tf.fill(tf.shape(c), done))
        is_closer = hinge.is_adversarial & (squared_distance < state.best.squared_distance)
        state = state._replace(
            has_succeeded=state.has_succeeded | hinge.is_adversarial,
            best=choose(is_closer, new, state.best),
            is_stuck=tf.where(done == 0, is_zero(hinge.gradient), state.is_stuck),
        )
        state = _stop_stalled(state, squared_distance + c * hinge.f, done, settings)
        weight = tf.where(hinge.f > 0.0, c, 0.0)
        gradient = 2.0 * change + per_pixel(weight) * hinge.gradient
        # The slope of (tanh(w) + 1) / 2.
        gradient *= 2.0 * images * (1.0 - images)
        movement, moments = adam_step(state.moments, gradient, done, settings.learning_rate)
        movement = tf.where(per_pixel(state.is_moving), movement, 0.0)
        return done + 1, state._replace(w=state.w + movement, moments=moments)

    def _hinge(self, images: tf.Tensor, batch: AttackBatch, settings: _Settings) -> _Hinge:
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = self._logits(images)
            margins = margin(logits, batch.labels)
            margins = tf.where(settings.targeted, -margins, margins)
        gradient = usable_gradient(tape.gradient(margins, images), batch.mask)
        # In a tie it is argmax that decides.
        is_label = tf.argmax(logits, axis=1) == batch.labels
        is_adversarial = (is_label == settings.targeted) & (margins <= -settings.confidence)
        return _Hinge(tf.nn.relu(margins + settings.confidence), is_adversarial, gradient)


def _image(w: tf.Tensor, batch: AttackBatch) -> tf.Tensor:
    return tf.where(batch.mask != 0.0, (tf.tanh(w) + 1.0) / 2.0, batch.images)


def _stop_stalled(
    state: _Descent, objective: tf.Tensor, done: tf.Tensor, settings: _Settings
) -> _Descent:
    interval = tf.maximum(settings.iterations // _CHECKS_PER_DESCENT, 1)
    is_check = done % interval == 0
    has_stalled = objective >= _NEEDED_PROGRESS * state.checked_objective
    return state._replace(
        is_moving=state.is_moving & ~(settings.abort_early & is_check & has_stalled),
        checked_objective=tf.where(is_check, objective, state.checked_objective),
    )


def _next_c(search: _BinarySearch, has_succeeded: tf.Tensor) -> _BinarySearch:
    """Halves the interval, or grows c tenfold where none has succeeded yet."""
    lower_bound = tf.where(has_succeeded, search.lower_bound, search.c)
    upper_bound = tf.where(has_succeeded, search.c, search.upper_bound)
    grown = tf.minimum(_GROWTH * search.c, _LARGEST_CONSTANT)
    middle = (lower_bound + upper_bound) / 2.0
    return _BinarySearch(
        tf.where(tf.math.is_inf(upper_bound), grown, middle), lower_bound, upper_bound
    )
