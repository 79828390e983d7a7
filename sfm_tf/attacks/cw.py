"""The attack of Carlini and Wagner for the smallest perturbation in the L2 norm."""

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
    Option,
    usable_gradient,
)
from sfm_tf.models.logit_losses import cross_entropy, margin

_DECAY = 0.9
_SQUARE_DECAY = 0.999
_STABILITY = 1e-8


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
    mean = _DECAY * moments.mean + (1.0 - _DECAY) * gradient
    square = _SQUARE_DECAY * moments.square + (1.0 - _SQUARE_DECAY) * gradient**2
    size = learning_rate * tf.sqrt(1.0 - _SQUARE_DECAY**count) / (1.0 - _DECAY**count)
    return -size * mean / (tf.sqrt(square) + _STABILITY), Moments(mean, square)


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


class _Evaluation(NamedTuple):
    """The attacked model at some images; `gradient` is that of the margin."""

    hinge: tf.Tensor
    succeeded: tf.Tensor
    gradient: tf.Tensor


class _Bracket(NamedTuple):
    """Per image, the constant to try next, between one that failed and one that succeeded."""

    constant: tf.Tensor
    failed: tf.Tensor
    succeeded: tf.Tensor


class _Findings(NamedTuple):
    """Per image, the closest adversarial one so far, and whether the first gradient was zero."""

    images: tf.Tensor
    squared_distance: tf.Tensor
    iterations: tf.Tensor
    is_stuck: tf.Tensor


class _Descent(NamedTuple):
    """The state of one descent; `points` are the images in the tanh space."""

    points: tf.Tensor
    moments: Moments
    checked_objective: tf.Tensor
    is_moving: tf.Tensor
    succeeded: tf.Tensor
    findings: _Findings


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

    options: ClassVar[Mapping[str, Option]] = {
        "binary_search_steps": COUNT,
        "iterations": COUNT,
        "initial_constant": POSITIVE,
        "confidence": NOT_NEGATIVE,
        "learning_rate": POSITIVE,
        "targeted": FLAG,
        "abort_early": FLAG,
        "batch_size": COUNT,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **CompiledAttack.defaults,
        "confidence": 0.0,
        "learning_rate": 0.01,
        "abort_early": False,
    }

    norm = 2
    epsilon = math.inf
    seed = 0

    binary_search_steps: int
    iterations: int
    initial_constant: float
    confidence: float
    learning_rate: float
    abort_early: bool

    def __init__(self, estimator: TensorFlowV2Classifier, **options: Any) -> None:
        """Sets the options and prepares the search, which is compiled at the first batch."""
        super().__init__(estimator, **options)
        # A partial, because TensorFlow counts compilations by the code of a function.
        self._compiled_search = tf.function(functools.partial(self._search), autograph=False)

    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        values = (getattr(self, name) for name in _Settings._fields)
        settings = map(tf.constant, values, _SETTING_TYPES)
        return self._compiled_search(batch, _Settings(*settings))

    def _search(self, batch: AttackBatch, settings: _Settings) -> BatchOutcome:
        def search(done: tf.Tensor, bracket: _Bracket, findings: _Findings) -> Any:
            descent = self._descend(batch, bracket.constant, findings, settings)
            return done + 1, _narrow(bracket, descent.succeeded), descent.findings

        zeros = tf.zeros_like(batch.labels, tf.float32)
        bracket = _Bracket(zeros + settings.initial_constant, zeros, zeros + math.inf)
        iterations = tf.fill(tf.shape(zeros), NOT_FOUND)
        findings = _Findings(batch.images, zeros + math.inf, iterations, zeros > 0.0)
        _, _, findings = tf.while_loop(
            lambda done, *_: done < settings.binary_search_steps, search, (0, bracket, findings)
        )
        # At distance 0 the image itself, which the way to the tanh space and back has rounded.
        has_moved = findings.squared_distance > 0.0
        images = tf.where(_per_pixel(has_moved), findings.images, batch.images)
        loss = cross_entropy(self._logits(images), batch.labels)
        return BatchOutcome(images, loss, findings.iterations, findings.is_stuck)

    def _descend(
        self, batch: AttackBatch, constant: tf.Tensor, findings: _Findings, settings: _Settings
    ) -> _Descent:
        points = tf.atanh((2.0 * batch.images - 1.0) * _SHRINKAGE)
        start = _images_at(points, batch)
        nobody = tf.zeros_like(findings.is_stuck)
        infinite = tf.fill(tf.shape(constant), math.inf)
        moments = initial_moments(points)
        descent = _Descent(points, moments, infinite, ~nobody, nobody, findings)
        # One turn more than steps: the last iterate is evaluated, too.
        _, descent = tf.while_loop(
            lambda done, descent: (done <= settings.iterations) & tf.reduce_any(descent.is_moving),
            functools.partial(self._step, batch, start, constant, settings),
            (0, descent),
        )
        return descent

    def _step(
        self,
        batch: AttackBatch,
        start: tf.Tensor,
        constant: tf.Tensor,
        settings: _Settings,
        done: tf.Tensor,
        descent: _Descent,
    ) -> tuple[tf.Tensor, _Descent]:
        images = _images_at(descent.points, batch)
        evaluation = self._evaluate(images, batch, settings)
        change = images - start
        squared_distance = tf.reduce_sum(change**2, axis=_IMAGE_AXES)
        descent = _record(descent, images, squared_distance, evaluation, done)
        objective = squared_distance + constant * evaluation.hinge
        descent = _stop_stalled(descent, objective, done, settings)
        weight = tf.where(evaluation.hinge > 0.0, constant, 0.0)
        gradient = 2.0 * change + _per_pixel(weight) * evaluation.gradient
        # The slope of (tanh(w) + 1) / 2.
        gradient *= 2.0 * images * (1.0 - images)
        movement, moments = adam_step(descent.moments, gradient, done, settings.learning_rate)
        movement = tf.where(_per_pixel(descent.is_moving), movement, 0.0)
        return done + 1, descent._replace(points=descent.points + movement, moments=moments)

    def _evaluate(self, images: tf.Tensor, batch: AttackBatch, settings: _Settings) -> _Evaluation:
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = self._logits(images)
            margins = margin(logits, batch.labels)
            margins = tf.where(settings.targeted, -margins, margins)
        gradient = usable_gradient(tape.gradient(margins, images), batch.mask)
        # In a tie it is argmax that decides.
        is_label = tf.argmax(logits, axis=1) == batch.labels
        succeeded = (is_label == settings.targeted) & (margins <= -settings.confidence)
        return _Evaluation(tf.nn.relu(margins + settings.confidence), succeeded, gradient)


def _per_pixel(values: tf.Tensor) -> tf.Tensor:
    return values[:, None, None, None]


def _images_at(points: tf.Tensor, batch: AttackBatch) -> tf.Tensor:
    return tf.where(batch.mask != 0.0, (tf.tanh(points) + 1.0) / 2.0, batch.images)


def _record(
    descent: _Descent,
    images: tf.Tensor,
    squared_distance: tf.Tensor,
    evaluation: _Evaluation,
    done: tf.Tensor,
) -> _Descent:
    findings = descent.findings
    is_closer = evaluation.succeeded & (squared_distance < findings.squared_distance)
    is_zero = tf.reduce_all(evaluation.gradient == 0.0, axis=_IMAGE_AXES)
    return descent._replace(
        succeeded=descent.succeeded | evaluation.succeeded,
        findings=_Findings(
            tf.where(_per_pixel(is_closer), images, findings.images),
            tf.where(is_closer, squared_distance, findings.squared_distance),
            tf.where(is_closer, done, findings.iterations),
            tf.where(done == 0, is_zero, findings.is_stuck),
        ),
    )


def _stop_stalled(
    descent: _Descent, objective: tf.Tensor, done: tf.Tensor, settings: _Settings
) -> _Descent:
    interval = tf.maximum(settings.iterations // _CHECKS_PER_DESCENT, 1)
    is_check = done % interval == 0
    has_stalled = objective >= _NEEDED_PROGRESS * descent.checked_objective
    return descent._replace(
        is_moving=descent.is_moving & ~(settings.abort_early & is_check & has_stalled),
        checked_objective=tf.where(is_check, objective, descent.checked_objective),
    )


def _narrow(bracket: _Bracket, succeeded: tf.Tensor) -> _Bracket:
    """Halves the bracket, or grows the constant tenfold where none has succeeded yet."""
    low = tf.where(succeeded, bracket.failed, bracket.constant)
    high = tf.where(succeeded, bracket.constant, bracket.succeeded)
    grown = tf.minimum(_GROWTH * bracket.constant, _LARGEST_CONSTANT)
    constant = tf.where(tf.math.is_inf(high), grown, (low + high) / 2.0)
    return _Bracket(constant, low, high)
