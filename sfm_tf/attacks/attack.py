"""The frame of all attacks: options, input checks, batches of one size, and checked results."""

import abc
import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf
from art.attacks.attack import EvasionAttack
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.norm_balls import BALLS
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import CLIP_VALUES, classifier_logits
from sfm_tf.models.input_checks import check_images, check_labels, check_logits, check_mask


class ValueKind(NamedTuple):
    """Which values an option may have, and how an error message describes them."""

    is_valid: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def one_of(names: Iterable[str]) -> ValueKind:
    """Returns the kind of value that is one of `names`."""
    names = tuple(names)
    return ValueKind(
        lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}"
    )


NORM = ValueKind(
    lambda value: isinstance(value, int | float | str) and value in BALLS, "'inf', math.inf or 2"
)
POSITIVE = ValueKind(
    lambda value: _is_number(value) and 0.0 < value < math.inf, "a finite number above 0"
)
NOT_NEGATIVE = ValueKind(
    lambda value: _is_number(value) and 0.0 <= value < math.inf, "a finite number of at least 0"
)
SHARE = ValueKind(
    lambda value: _is_number(value) and 0.0 < value <= 1.0, "a number above 0, at most 1"
)
COUNT = ValueKind(lambda value: _is_integer(value) and value >= 1, "an integer of at least 1")
SEED = ValueKind(
    lambda value: _is_integer(value) and 0 <= value < 2**31, "an integer from 0 to 2^31-1"
)
FLAG = ValueKind(lambda value: isinstance(value, bool), "True or False")

NOT_FOUND = -1
"""In place of a number of iterations: the attack found no adversarial image."""


class AttackBatch(NamedTuple):
    """Tensors of one batch, all of the same first dimension.

    Attributes:
        images: Float32 in [0, 1], `(batch, height, width, channels)`.
        labels: Int64 `(batch,)`: to get away from, or to get to in a targeted attack.
        mask: Float32 of the images' shape; zero where a pixel must not change.
        seeds: Int32 `(batch, 2)`: the attack's seed and the image's position.
    """

    images: tf.Tensor
    labels: tf.Tensor
    mask: tf.Tensor
    seeds: tf.Tensor


class BatchOutcome(NamedTuple):
    """Tensors of one batch with the meaning of `AttackOutcome`'s fields."""

    images: tf.Tensor
    loss: tf.Tensor
    iterations: tf.Tensor
    zero_gradient: tf.Tensor


@dataclasses.dataclass(frozen=True)
class AttackOutcome:
    """Adversarial images and how the attack went, per image.

    Attributes:
        images: Float32 in [0, 1], shape `(batch, height, width, channels)`.
        loss: Float32 cross-entropy at those images on the attacked model, shape `(batch,)`.
        iterations: Int32 steps taken to reach those images, shape `(batch,)`; `NOT_FOUND` where a
            minimum-norm attack found none and returns the image unchanged.
        zero_gradient: Whether the first gradient had no non-zero entry, shape `(batch,)`. In
            float32 that of the cross-entropy is exactly zero at a confident prediction, which
            stalls the attack without making the model robust.
    """

    images: np.ndarray
    loss: np.ndarray
    iterations: np.ndarray
    zero_gradient: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Whether there is an image to score, which only minimum-norm attacks may deny."""
        return self.iterations != NOT_FOUND

    @property
    def zero_gradient_share(self) -> float:
        """Share of the images whose first gradient was zero, in [0, 1]."""
        return float(np.mean(self.zero_gradient))


def join_outcomes(outcomes: Sequence[AttackOutcome]) -> AttackOutcome:
    """Returns the outcomes of consecutive images as one."""
    names = [field.name for field in dataclasses.fields(AttackOutcome)]
    return AttackOutcome(*(np.concatenate([getattr(o, name) for o in outcomes]) for name in names))


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class CompiledAttack(EvasionAttack):
    """An ART attack that sees batches of one fixed size, so that it compiles once.

    A subclass is a dataclass too. Its fields are its options, ART's `attack_params`; it checks them
    in `_check_params` and implements `_attack_batch`. Where one of the options below is none of a
    subclass, it is a `ClassVar` there: an attack for the smallest perturbation has an infinite
    `epsilon`.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        targeted: Whether labels are classes to reach rather than to leave.
        batch_size: Images attacked at a time.
        seed: Seed of everything random.

    Raises:
        SfmError: If the classifier or the value of an option is not fit for the attack.
    """

    # `field` hides ART's property of this name, which would be taken for the default value.
    estimator: dataclasses.InitVar[TensorFlowV2Classifier] = dataclasses.field(kw_only=False)
    norm: float | str = math.inf
    epsilon: float
    targeted: bool = False
    batch_size: int = 128
    seed: int = 0

    _estimator_requirements = (TensorFlowV2Classifier,)
    _parallel_parts: ClassVar[int] = 2
    _returns_logits = False

    def __post_init__(self, estimator: TensorFlowV2Classifier) -> None:
        """Checks the classifier and the options."""
        super().__init__(estimator=estimator)
        if not estimator.all_framework_preprocessing:
            raise SfmError(
                "The classifier has a preprocessor that is not TensorFlow's; expected subclasses "
                "of PreprocessorTensorFlowV2 only."
            )
        if estimator.clip_values is None or not np.array_equal(estimator.clip_values, CLIP_VALUES):
            raise SfmError(f"clip_values {estimator.clip_values}; expected {CLIP_VALUES}.")
        self._check_params()

    @property
    def attack_params(self) -> list[str]:
        """Names of the options, as ART asks for them."""
        return [field.name for field in dataclasses.fields(self)]

    def set_params(self, **options: Any) -> None:
        """Sets options by name, all or none; nothing is compiled anew for another number.

        Raises:
            SfmError: If an option is unknown or its value not allowed.
        """
        known = self.attack_params
        for name in options:
            if name not in known:
                attack, names = type(self).__name__, ", ".join(known)
                raise SfmError(f"Unknown option {name!r} of {attack}; expected one of {names}.")
        before = {name: getattr(self, name) for name in options}
        vars(self).update(options)
        try:
            self._check_params()
        except SfmError:
            vars(self).update(before)
            raise

    def _check_params(self) -> None:
        """Checks the values of all options, as ART asks for it."""
        self._check(NORM, "norm")
        self._check(NOT_NEGATIVE, "epsilon")
        self._check(FLAG, "targeted")
        self._check(COUNT, "batch_size")
        self._check(SEED, "seed")

    def _check(self, kind: ValueKind, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if name in self.attack_params and not kind.is_valid(value):
                attack = type(self).__name__
                raise SfmError(f"Invalid {name} {value!r} of {attack}; expected {kind.expected}.")

    def generate(
        self, x: np.ndarray, y: np.ndarray | None = None, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the adversarial images alone; see `run`."""
        return self.run(x, y, mask).images

    def run(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> AttackOutcome:
        """Attacks every image and checks the result; see `batches`."""
        return join_outcomes(list(self.batches(images, labels, mask, positions)))

    def batches(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> Iterator[AttackOutcome]:
        """Attacks batch after batch, checks each result and yields it.

        Args:
            images: Numbers in [0, 1], shape `(batch, height, width, channels)`.
            labels: Class indices `(batch,)` or one-hot rows; None for the model's predictions,
                which a targeted attack does not allow.
            mask: Numbers that broadcast to the images' shape; zero where a pixel must not change.
            positions: Integers `(batch,)` that, with the attack's seed, seed each image; by default
                0, 1, 2 and so on. Part of a data set is attacked as in the whole one if its images
                come with their positions there.

        Yields:
            The adversarial images of the next `batch_size` images with their diagnostics.

        Raises:
            SfmError: If an argument is not as described or the model does not return logits.
            RuntimeError: If the attack broke its own limits, which is a defect.
        """
        inputs = self._checked_inputs(images, labels, mask, positions)
        count = len(inputs.images)
        size = bucket_size(count, self.batch_size)
        for start in range(0, count, size):
            # The last batch is filled up with its last image: another shape would compile anew.
            rows = fill_up(np.arange(start, min(start + size, count)), size)
            batch = AttackBatch(*(array[rows] for array in inputs))
            tensors = attack_in_parallel(self._attack_batch, batch, self._parallel_parts)
            outcome = AttackOutcome(*(tensor.numpy()[: count - start] for tensor in tensors))
            self._check_outcome(AttackBatch(*(a[start : start + size] for a in inputs)), outcome)
            yield outcome

    def _checked_inputs(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        mask: np.ndarray | None,
        positions: np.ndarray | None,
    ) -> AttackBatch:
        """Returns all inputs as arrays."""
        images = check_images(images, self.estimator.input_shape)
        if not self._returns_logits:
            logits = self.estimator.predict(images[: self.batch_size])
            check_logits(logits, self.estimator.nb_classes)
            # Once: to show the model a batch is a good part of an attack of one step.
            self._returns_logits = True
        labels = self._labels(images, labels)
        positions = np.arange(len(images)) if positions is None else np.asarray(positions)
        seeds = np.stack([np.full_like(positions, self.seed), positions], axis=1)
        return AttackBatch(images, labels, check_mask(mask, images.shape), seeds.astype(np.int32))

    def _labels(self, images: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        if labels is not None:
            return check_labels(labels, len(images), self.estimator.nb_classes)
        if self.targeted:
            raise SfmError("A targeted attack needs labels; expected the classes to reach.")
        starts = range(0, len(images), self.batch_size)
        chunks = [images[start : start + self.batch_size] for start in starts]
        return np.concatenate([np.argmax(self.estimator.predict(c), axis=1) for c in chunks])

    @abc.abstractmethod
    def _attack_batch(self, batch: AttackBatch) -> BatchOutcome:
        """Attacks one batch."""

    def _compiled(self, method: Callable, *options: str) -> Callable:
        """Returns a method of this attack as a graph of its own for all values of some options.

        Args:
            method: From structures of tensors to one.
            options: Names of the attributes that shape the graph, so that another value compiles it
                anew. The method reads these options from the attack and no others: they would stay
                at what they were when it was compiled. Numbers are to be arguments.
        """

        def traced(values: tuple[Any, ...], *arguments: Any) -> Any:
            del values
            return method(*arguments)

        # A partial, because TensorFlow counts compilations by the code of a function and would warn
        # of too many when a program attacks many models.
        graph = tf.function(functools.partial(traced), autograph=False)

        def call(*arguments: Any) -> Any:
            values = (getattr(self, name) for name in options)
            # TensorFlow takes a number of NumPy's for a tensor, whose value shapes no graph.
            plain = (v.item() if isinstance(v, np.generic) else v for v in values)
            return graph(tuple(plain), *arguments)

        return call

    def _logits(self, images: tf.Tensor) -> tf.Tensor:
        return classifier_logits(self.estimator, images)

    def _check_outcome(self, inputs: AttackBatch, outcome: AttackOutcome) -> None:
        broken = ~np.isfinite(outcome.loss)
        if broken.any():
            first = inputs.seeds[np.argmax(broken), 1]
            raise SfmError(
                f"The model's loss is NaN or infinite for {broken.sum()} of {len(broken)} attacked "
                f"images, first image {first}; expected finite logits."
            )
        found = faults(inputs.images, outcome.images, self.epsilon, float(self.norm))
        if found:
            raise RuntimeError(f"{self!r} made invalid images: {'; '.join(found)}.")


# Adding a perturbation to a pixel rounds at 2^-24; the L2 norm sums that over an image.
_TOLERANCES = {np.inf: 1e-6, 2.0: 1e-5}


def perturbation_sizes(
    images: np.ndarray, adversarial_images: np.ndarray, norm: float
) -> np.ndarray:
    """Returns the norm of each image's perturbation.

    Args:
        images: Shape `(batch, height, width, channels)`.
        adversarial_images: Same shape.
        norm: Order of the norm: `math.inf` or 2.

    Returns:
        Float64 of shape `(batch,)`, in the units of the pixels.
    """
    difference = adversarial_images.astype(np.float64) - images.astype(np.float64)
    return np.linalg.norm(difference.reshape(len(images), -1), ord=norm, axis=1)


def faults(
    images: np.ndarray, adversarial_images: np.ndarray, epsilon: float, norm: float
) -> list[str]:
    """Returns a phrase for each way in which the adversarial images are not valid.

    Args:
        images: Float32 in [0, 1], shape `(batch, height, width, channels)`.
        adversarial_images: What an attack made of them.
        epsilon: Largest norm allowed of a perturbation, in the units of the pixels; `math.inf` for
            any norm.
        norm: Order of the norm: `math.inf` or 2.
    """
    if adversarial_images.shape != images.shape:
        return [f"their shape is {adversarial_images.shape} instead of {images.shape}"]
    if not np.isfinite(adversarial_images).all():
        return ["they hold NaN or infinite values"]
    found = []
    low, high = adversarial_images.min(), adversarial_images.max()
    if low < 0 or high > 1:
        found.append(f"their values run from {low:.9g} to {high:.9g} instead of within [0, 1]")
    largest = perturbation_sizes(images, adversarial_images, norm).max()
    if largest > epsilon + _TOLERANCES[norm]:
        found.append(f"a perturbation has norm {largest:.9g} instead of at most {epsilon:.9g}")
    return found


def usable_gradient(gradient: tf.Tensor | None, mask: tf.Tensor) -> tf.Tensor:
    """Returns `gradient` with zeros where it is not finite or a pixel must not change.

    Args:
        gradient: What a gradient tape returned for the images, of the mask's shape.
        mask: Float32 of shape `(batch, height, width, channels)`; zero where a pixel must not
            change.

    Raises:
        SfmError: If there is no gradient: the output does not depend on the images differentiably.
    """
    if gradient is None:
        raise SfmError(
            "The model has no gradient with respect to its input; give each operation without "
            "one, such as rounding, a surrogate gradient."
        )
    is_usable = tf.math.is_finite(gradient) & (mask != 0.0)
    # A third of the time of `tf.where` on a CPU; zero times NaN or infinity is zero here.
    return tf.math.multiply_no_nan(gradient, tf.cast(is_usable, gradient.dtype))


def is_zero(gradient: tf.Tensor) -> tf.Tensor:
    """Returns whether all values of an image's gradient are zero, bool `(batch,)`."""
    return tf.reduce_all(gradient == 0.0, axis=(1, 2, 3))


def per_pixel(values: tf.Tensor) -> tf.Tensor:
    """Returns values `(batch,)` as `(batch, 1, 1, 1)`, which broadcasts to images."""
    return values[:, None, None, None]


def choose(condition: tf.Tensor, chosen: Any, other: Any) -> Any:
    """Returns per image what `chosen` has where the condition holds, and `other` elsewhere.

    Args:
        condition: Bool of shape `(batch,)`.
        chosen: A structure of tensors of shape `(batch, ...)`.
        other: A structure of the same form.
    """

    # Unlike `tf.where`, this older operation picks whole rows, several times as fast on a CPU.
    pick = functools.partial(tf.raw_ops.Select, condition=condition)
    return tf.nest.map_structure(lambda x, y: pick(x=x, y=y), chosen, other)


class Scores(NamedTuple):
    """How an attack fares at some images.

    Attributes:
        objective: Float32 `(batch,)`: what the attack maximises; minus the loss if targeted.
        fooled: Float32 `(batch,)` in [0, 1]: share of the samples of the model's randomness in
            which it leaves the label, or reaches it in a targeted attack.
    """

    objective: tf.Tensor
    fooled: tf.Tensor


def mean_of_samples(values: tf.Tensor, samples: int) -> tf.Tensor:
    """Returns per image the mean over its samples: from `(batch * samples,)` to `(batch,)`."""
    return tf.reduce_mean(tf.reshape(values, (-1, samples)), axis=1)


def score(
    losses: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, targeted: bool, samples: int = 1
) -> Scores:
    """Returns the scores of images that the model was shown `samples` times each.

    Args:
        losses: Float32 `(batch * samples,)`, the samples of one image next to each other.
        logits: Float32 `(batch * samples, classes)`.
        labels: Int64 `(batch * samples,)`.
        targeted: Whether labels are classes to reach rather than to leave.
        samples: Times that each image was shown.
    """
    hit = tf.argmax(logits, axis=1) == labels
    objectives, fooled = (-losses, hit) if targeted else (losses, ~hit)
    fooled = tf.cast(fooled, tf.float32)
    return Scores(mean_of_samples(objectives, samples), mean_of_samples(fooled, samples))


class Candidate(NamedTuple):
    """Images worth returning, with their scores and the iteration they were reached in.

    Attributes:
        images: Float32 in [0, 1], `(batch, height, width, channels)`.
        objective: As in `Scores`.
        fooled: As in `Scores`.
        iterations: Int32 `(batch,)`.
    """

    images: tf.Tensor
    objective: tf.Tensor
    fooled: tf.Tensor
    iterations: tf.Tensor


def make_candidate(images: tf.Tensor, scores: Scores, iteration: tf.Tensor) -> Candidate:
    """Returns `images` with their scores, all reached in the same iteration, an int32."""
    iterations = tf.fill(tf.shape(scores.objective), iteration)
    return Candidate(images, scores.objective, scores.fooled, iterations)


def worst_candidate(images: tf.Tensor) -> Candidate:
    """Returns `images` as a candidate that any other is better than."""
    objective = tf.fill(tf.shape(images)[:1], -float("inf"))
    return make_candidate(images, Scores(objective, tf.zeros_like(objective)), tf.constant(0))


def better(first: Candidate, second: Candidate) -> Candidate:
    """Picks per image: the one that fools the model more, then the higher objective, then `first`.

    An image can have the higher loss of two and yet be classified as its label, by a narrow margin
    over several classes; so fooling comes before the loss.
    """
    fools_more = second.fooled > first.fooled
    is_higher = (second.fooled == first.fooled) & (second.objective > first.objective)
    return choose(fools_more | is_higher, second, first)


_HALVINGS = 3


def bucket_size(count: int, batch_size: int) -> int:
    """Returns the smallest bucket that holds `count` images.

    The buckets are the batch size and its half, quarter and eighth, rounded up: an attack that
    drops images compiles for four shapes at most, and computes at most half of a bucket for
    nothing unless it is the smallest.

    Args:
        count: Number of images, at least 1; more than the batch size take several batches.
        batch_size: The largest bucket.
    """
    buckets = [-(-batch_size // 2**halvings) for halvings in range(_HALVINGS + 1)]
    return min(size for size in buckets if size >= min(count, batch_size))


def fill_up(rows: np.ndarray, size: int) -> np.ndarray:
    """Returns `rows`, indices of images, with the last one repeated up to `size` of them."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))])


def take(tensors: Any, rows: np.ndarray) -> Any:
    """Returns the given rows of every tensor of a nested structure."""
    indices = tf.constant(rows)
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, indices), tensors)


def put(tensors: Any, rows: np.ndarray, new: Any) -> Any:
    """Returns `tensors` with the given rows replaced by the first rows of those in `new`.

    Args:
        tensors: Nested structure of tensors of one first dimension.
        rows: Distinct indices into it.
        new: The same structure; rows beyond `len(rows)` fill up a bucket and are left out.
    """
    indices = tf.constant(rows)[:, None]

    def update(old: tf.Tensor, replacement: tf.Tensor) -> tf.Tensor:
        return tf.tensor_scatter_nd_update(old, indices, replacement[: len(rows)])

    return tf.nest.map_structure(update, tensors, new)


def advance_unfinished(
    advance: Callable[[Any, Any], Any],
    batch: Any,
    state: Any,
    is_finished: tf.Tensor,
    batch_size: int,
) -> Any:
    """Returns the state after `advance` has worked on the smallest bucket of unfinished images.

    It runs eagerly, between two calls of a compiled function: there the number of images decides
    which of few shapes to compute with.

    Args:
        advance: Maps some rows of the batch and of the state to those rows' new state. It must
            treat every image by itself, because it may see one twice.
        batch: Nested structure of tensors of one first dimension: what the attack is given.
        state: Nested structure of tensors of that dimension: how far it has come.
        is_finished: Bool of that dimension: whose state is to stay.
        batch_size: The largest bucket.
    """
    rows = np.flatnonzero(~is_finished.numpy())
    if len(rows) == 0:
        return state
    bucket = fill_up(rows, bucket_size(len(rows), batch_size))
    return put(state, rows, advance(take(batch, bucket), take(state, bucket)))


_SMALLEST_PART = 16
"""Images; fewer cost more in calls than they win."""

_Batch = TypeVar("_Batch", bound=tuple[np.ndarray, ...])
_Outcome = TypeVar("_Outcome", bound=tuple[tf.Tensor, ...])


def attack_in_parallel(attack: Callable[[Any], _Outcome], batch: _Batch, parts: int) -> _Outcome:
    """Returns what `attack` makes of a batch, of its parts in parallel if that is faster.

    On a CPU an operation seldom keeps all cores busy to its end; those of another part fill the
    gaps. On a GPU, or with few images, the batch is left whole.

    Args:
        attack: From a batch of tensors to an outcome, a named tuple of tensors, each with a row for
            each image; the rows of an image must not depend on those beside it. It runs in threads.
        batch: Named tuple of arrays with a row for each image.
        parts: Number of parts, of equal size.
    """
    size = len(batch[0]) // parts
    if size * parts < len(batch[0]) or size < _SMALLEST_PART or _has_gpu():
        parts, size = 1, len(batch[0])
    if parts == 1:
        return attack(_tensors(batch, slice(size)))
    batches = [_tensors(batch, slice(size * part, size * (part + 1))) for part in range(parts)]
    with concurrent.futures.ThreadPoolExecutor(parts) as threads:
        outcomes = list(threads.map(attack, batches))
    return type(outcomes[0])(*(tf.concat(rows, axis=0) for rows in zip(*outcomes, strict=True)))


def _has_gpu() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))


def _tensors(batch: _Batch, rows: slice) -> _Batch:
    return type(batch)(*(tf.constant(array[rows]) for array in batch))
