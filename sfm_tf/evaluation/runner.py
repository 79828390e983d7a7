"""Runs every attack under every threat model and scores the models on what they make."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.artifacts.fingerprints import fingerprint
from sfm_tf.attacks.attack import NOT_FOUND, AttackOutcome, CompiledAttack, perturbation_sizes
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import (
    AttackExecution,
    RemainingImages,
    Starts,
    StoredSet,
)
from sfm_tf.evaluation.attack_building import build_attack, step_size_at
from sfm_tf.evaluation.attack_catalogue import NORMS
from sfm_tf.evaluation.attack_plan import PlannedAttack, plan_attacks
from sfm_tf.evaluation.job import EvaluationJob
from sfm_tf.evaluation.results import (
    CLEAN,
    NO_THREAT,
    UNDEFENDED,
    ResultsTable,
    Scenario,
    join_results,
    results_rows,
)
from sfm_tf.evaluation.samples import Samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.threat_models import ThreatModel, none_applies
from sfm_tf.models.art_classifier import classifier_logits
from sfm_tf.models.defended_model import DefendedModel, in_precision
from sfm_tf.models.input_checks import check_logits
from sfm_tf.models.logit_losses import stable_cross_entropy
from sfm_tf.settings import PIXEL_LEVELS


def vanished_share(
    exact: TensorFlowV2Classifier,
    rounded: TensorFlowV2Classifier,
    samples: Samples,
    batch_size: int,
) -> float:
    """Returns the share of gradient entries that float32 shows and 16 bits do not.

    Entries are those of the cross-entropy's gradient at the clean images, in the stable form that
    attacks climb. Where many are lost, a model can look robust because its attacker is blind.

    Args:
        exact: The model in float32.
        rounded: The same model in 16 bits.
        samples: The images that are attacked.
        batch_size: Images differentiated at a time.

    Returns:
        In [0, 1]; 0 where float32 shows none either.
    """
    seen, lost = 0, 0
    for first in range(0, len(samples), batch_size):
        rows = slice(first, first + batch_size)
        images, labels = tf.constant(samples.images[rows]), tf.constant(samples.labels[rows])
        visible = _gradient(exact, images, labels) != 0.0
        seen += np.count_nonzero(visible)
        lost += np.count_nonzero(visible & (_gradient(rounded, images, labels) == 0.0))
    return lost / seen if seen else 0.0


def _gradient(
    classifier: TensorFlowV2Classifier, images: tf.Tensor, labels: tf.Tensor
) -> np.ndarray:
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(stable_cross_entropy(classifier_logits(classifier, images), labels))
    return tape.gradient(loss, images).numpy()


# Float32 perturbations of exactly the radius may come out a rounding above it.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class ScoredModel:
    """A model whose accuracy is measured, and its logits of the clean images."""

    classifier: TensorFlowV2Classifier
    clean_logits: np.ndarray

    def predictions(self, images: np.ndarray) -> np.ndarray:
        """Returns the classes of images of shape `(count, height, width, channels)`."""
        return np.argmax(self.classifier.predict(images), axis=1)


def score_clean(model: DefendedModel, samples: Samples, batch_size: int) -> ScoredModel:
    """Returns the model with what it makes of the clean images.

    Raises:
        SfmError: If it does not return finite logits.
    """
    classifier = samples.wrap(model, batch_size)
    logits = classifier.predict(samples.images)
    check_logits(logits, samples.class_count)
    return ScoredModel(classifier, logits)


def clean_outcome(classifier: TensorFlowV2Classifier, samples: Samples) -> AttackOutcome:
    """Returns the clean images as the outcome of an attack that changes nothing."""
    nothing = np.zeros(len(samples), np.int32)
    losses = _cross_entropy(classifier.predict(samples.images), samples)
    return AttackOutcome(samples.images, losses, nothing, nothing.astype(bool))


def clean_rows(defence: str, model: ScoredModel, samples: Samples) -> ResultsTable:
    """Returns a row for each clean image."""
    prediction = np.argmax(model.clean_logits, axis=1)
    values = {
        "label": samples.labels,
        "defence": defence,
        "threat_model": NO_THREAT,
        "attack": CLEAN,
        "epsilon": 0.0,
        "clean_prediction": prediction,
        "prediction": prediction,
        "linf": 0.0,
        "l2": 0.0,
        "iterations": 0,
        "loss": _cross_entropy(model.clean_logits, samples),
        "zero_gradient": False,
    }
    return results_rows(len(samples), values)


def attack_rows(
    scenario: Scenario,
    attack_name: str,
    epsilon: float,
    outcome: AttackOutcome,
    model: ScoredModel,
    samples: Samples,
) -> ResultsTable:
    """Returns a row for each image of an attack's outcome.

    Args:
        scenario: The defence and the threat model.
        attack_name: The attack.
        epsilon: Its radius in 1/255; infinite where it found its own.
        outcome: What it made of the samples.
        model: The model of that defence.
        samples: The images that were attacked, the first ones of those scored clean.
    """
    values = {
        "label": samples.labels,
        "defence": scenario.defence,
        "threat_model": scenario.threat_model,
        "attack": attack_name,
        "epsilon": epsilon,
        "clean_prediction": np.argmax(model.clean_logits[: len(samples)], axis=1),
        "prediction": model.predictions(outcome.images),
        "linf": perturbation_sizes(samples.images, outcome.images, np.inf),
        "l2": perturbation_sizes(samples.images, outcome.images, 2.0),
        "iterations": outcome.iterations,
        "loss": outcome.loss,
        "zero_gradient": outcome.zero_gradient,
    }
    return results_rows(len(samples), values)


def within_radii(
    outcome: AttackOutcome,
    clean: AttackOutcome,
    samples: Samples,
    epsilons: Sequence[float],
    norm: float,
) -> Iterator[tuple[float, AttackOutcome]]:
    """Yields an outcome of smallest perturbations, then what is left of it in each ball.

    Where the perturbation is larger than the radius, an attacker who is held to the ball is left
    with the clean image.

    Args:
        outcome: What an attack for the smallest perturbation made.
        clean: The clean images' own outcome on the same model.
        samples: The images that were attacked.
        epsilons: Radii in 1/255.
        norm: Order of the norm: `math.inf` or 2.
    """
    yield math.inf, outcome
    sizes = perturbation_sizes(samples.images, outcome.images, norm)
    for epsilon in epsilons:
        inside = sizes <= epsilon / PIXEL_LEVELS + _ROUNDING
        kept = {
            "images": np.where(inside[:, None, None, None], outcome.images, clean.images),
            "loss": np.where(inside, outcome.loss, clean.loss),
            "iterations": np.where(inside, outcome.iterations, NOT_FOUND),
            "zero_gradient": outcome.zero_gradient,
        }
        yield epsilon, AttackOutcome(**kept)


def worst_outcome(
    outcomes: Sequence[AttackOutcome], model: ScoredModel, samples: Samples, norm: float | None
) -> AttackOutcome:
    """Returns of each image the outcome that harms most; of equal ones, the first.

    That is one that fools the scored model, then one of a higher loss or, among perturbations that
    are to be small, of a smaller norm.

    Args:
        outcomes: What attacks made of the samples, with losses that compare.
        model: The model that is scored.
        samples: The images that were attacked.
        norm: Order of the norm that is to be small; None where the loss decides.
    """
    if len(outcomes) == 1:
        return outcomes[0]

    def harm(outcome: AttackOutcome) -> tuple[np.ndarray, np.ndarray]:
        fooled = model.predictions(outcome.images) != samples.labels
        if norm is None:
            return fooled, outcome.loss
        return fooled, -perturbation_sizes(samples.images, outcome.images, norm)

    def worse(first: _Harmful, second: _Harmful) -> _Harmful:
        (best, harms), (other, others) = first, second
        is_worse = (others[0] > harms[0]) | ((others[0] == harms[0]) & (others[1] > harms[1]))
        chosen = {
            field.name: _where(is_worse, getattr(other, field.name), getattr(best, field.name))
            for field in dataclasses.fields(AttackOutcome)
        }
        kept = tuple(_where(is_worse, *pair) for pair in zip(others, harms, strict=True))
        return AttackOutcome(**chosen), kept

    return functools.reduce(worse, [(outcome, harm(outcome)) for outcome in outcomes])[0]


_Harmful: TypeAlias = tuple[AttackOutcome, tuple[np.ndarray, np.ndarray]]
"""An outcome; whether each of its images fools, and what decides among those that do alike."""


def _where(condition: np.ndarray, chosen: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.where(condition.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, other)


def _cross_entropy(logits: np.ndarray, samples: Samples) -> np.ndarray:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(samples.labels, logits).numpy()


_REPEATS = 3
_ENOUGH_SECONDS = 2.0
"""A pass that takes longer is not repeated: chance moves it little."""

_COUNTED = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """How long a defence takes to answer.

    Attributes:
        defence: Its name.
        images: Number of images of a pass.
        seconds_per_1000_images: Seconds, as if a pass had 1,000 images.
        relative_to_undefended: Ratio to the bare classifier; None where that was not measured.
    """

    defence: str
    images: int
    seconds_per_1000_images: float
    relative_to_undefended: float | None


def measure_costs(
    scored: Mapping[str, ScoredModel], images: np.ndarray, batch_size: int
) -> tuple[Cost, ...]:
    """Returns how long each model takes for 1,000 images (as Yu et al. 2022, Table 8).

    The models take turns in one process on the same first batch of images, which each has seen
    before, so that nothing is compiled. Time is that of the fastest of up to three passes.

    Args:
        scored: The models by the names of their defences; each has predicted these images.
        images: Float32 in [0, 1], shape `(count, height, width, channels)`.
        batch_size: Images in a pass.
    """
    shown = images[:batch_size]
    seconds = _pass_seconds(scored, shown)
    bare = seconds.get(UNDEFENDED)
    return tuple(
        Cost(
            defence=defence,
            images=len(shown),
            seconds_per_1000_images=taken * _COUNTED / len(shown),
            relative_to_undefended=taken / bare if bare else None,
        )
        for defence, taken in seconds.items()
    )


def _pass_seconds(scored: Mapping[str, ScoredModel], images: np.ndarray) -> dict[str, float]:
    fastest: dict[str, float] = {}
    for _ in range(_REPEATS):
        for name, model in scored.items():
            if fastest.get(name, 0.0) < _ENOUGH_SECONDS:
                taken = _seconds(model, images)
                fastest[name] = min(fastest.get(name, taken), taken)
    return fastest


def _seconds(model: ScoredModel, images: np.ndarray) -> float:
    start = time.perf_counter()
    model.predictions(images)
    return time.perf_counter() - start


_RemainingKey: TypeAlias = tuple[str, float, frozenset[str]]
"""Digest of the attacked model, radius, and threat models."""


@dataclasses.dataclass(frozen=True)
class EvaluationOutcome:
    """What an evaluation found.

    Attributes:
        results: The clean rows of every model, then the rows of every attack.
        sets: Which stored adversarial images were used for what.
        vanished: For attacks in 16 bits, the share of the gradient's entries that float32 shows and
            they do not, by defence and threat model; empty where attacks are in float32.
        costs: What `measure_costs` returned.
    """

    results: ResultsTable
    sets: tuple[StoredSet, ...]
    vanished: Mapping[Scenario, float]
    costs: tuple[Cost, ...]


def run_evaluation(job: EvaluationJob) -> EvaluationOutcome:
    """Attacks the models and scores them (Yu et al. 2022, section 6.1).

    Adversarial images are made once per attacked model, attack and radius, cheap attacks first,
    and kept in the job's store. Where an attacker tries several stand-ins of a gradient, all are,
    and so is the worst of them per image, which is what counts. A set that any earlier evaluation
    finished is used again if its model, images, attack, seed and code are the same; one that it
    began is gone on with.

    Raises:
        SfmError: If a model or an attack does not fit the images, or a stored set is damaged.
    """
    samples, batch_size = job.samples, job.config.attack_batch_size
    plan = plan_attacks(job.models, job.source, job.config)
    _check_plan(plan, job)
    job.progress("clean images", 0, len(samples))
    scored = {name: score_clean(model, samples, batch_size) for name, model in job.models.items()}
    costs = measure_costs(scored, samples.images, batch_size)
    job.store.sweep()
    run = _Run(job, scored)
    tables = [clean_rows(name, model, samples) for name, model in scored.items()]
    for place, planned in enumerate(plan, start=1):
        for made in _made_sets(planned, f"[{place}/{len(plan)}]", run):
            tables += _rows(made, planned, run)
            run.sets.extend(_stored_sets(made, planned))
    return EvaluationOutcome(join_results(tables), tuple(run.sets), run.vanished, costs)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Keeps a GPU from computing float32 with the ten bits of TensorFloat-32 meanwhile."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A job under way: the scored models, what attacks left so far, and what 16 bits lost.

    `lost` has the latter by the digest of the attacked model.
    """

    job: EvaluationJob
    scored: Mapping[str, ScoredModel]
    remaining: dict[_RemainingKey, RemainingImages] = dataclasses.field(default_factory=dict)
    vanished: dict[Scenario, float] = dataclasses.field(default_factory=dict)
    lost: dict[str, float] = dataclasses.field(default_factory=dict)
    sets: list[StoredSet] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _MadeSet:
    """Adversarial images of `samples`; `epsilon` is in 1/255, infinite for a minimum norm."""

    epsilon: float
    name: str
    outcome: AttackOutcome
    samples: Samples
    classifier: TensorFlowV2Classifier


def _check_plan(plan: list[PlannedAttack], job: EvaluationJob) -> None:
    """Raises now what would else be raised hours later."""
    config, samples = job.config, job.samples
    if not plan:
        raise none_applies(config.threat_models)
    first = samples.first(config.attack_batch_size)
    if job.source is not None:
        logits = first.wrap(job.source, len(first)).predict(first.images)
        check_logits(logits, samples.class_count)
    for planned in plan:
        precision = _precision(planned, config)
        radius = config.epsilons[0] / PIXEL_LEVELS
        for model in planned.models:
            model = model if precision == "float32" else in_precision(model, precision)
            wrapped = samples.wrap(model, len(first))
            build_attack(planned.attack_name, wrapped, radius, config, job.seed)


def _made_sets(planned: PlannedAttack, place: str, run: _Run) -> Iterator[_MadeSet]:
    """Yields what one attack makes at each radius; it is compiled once for all."""
    # An image that stops once it fools the attacked model fools others less often: other models,
    # and the same one in float32.
    precision = _precision(planned, run.job.config)
    only = run.job.config.robust_accuracy_only and planned.is_scored and precision == "float32"
    config = dataclasses.replace(run.job.config, robust_accuracy_only=only)
    samples = run.job.samples.first(planned.examples or len(run.job.samples))
    classifiers = [
        _attacked(model, digest, planned, samples, run)
        for model, digest in zip(planned.models, planned.digests, strict=True)
    ]
    first_radius = config.epsilons[0] / PIXEL_LEVELS
    attacks = [
        build_attack(planned.attack_name, classifier, first_radius, config, run.job.seed)
        for classifier in classifiers
    ]
    for epsilon in config.epsilons if planned.is_bounded else (math.inf,):
        made = []
        for digest, attack in zip(planned.digests, attacks, strict=True):
            if planned.is_bounded:
                attack.set_params(**_at_radius(attack, epsilon, config))
            execution = _execution(planned, digest, place, epsilon, attack, samples, run)
            remaining = _remaining(planned, epsilon, samples, classifiers[0], run)
            made.append(execution.outcome(remaining))
            if remaining is not None:
                name, outcome = made[-1]
                rows = _still_right(planned, outcome.images, run)
                remaining = RemainingImages(name, outcome, rows)
                run.remaining[_remaining_key(planned, epsilon)] = remaining
        name, outcome = _worst_set(planned, epsilon, made, samples, run)
        yield _MadeSet(epsilon, name, outcome, samples, classifiers[0])


def _worst_set(
    planned: PlannedAttack,
    epsilon: float,
    made: list[tuple[str, AttackOutcome]],
    samples: Samples,
    run: _Run,
) -> tuple[str, AttackOutcome]:
    """Returns the set of what harms most of several, stored under a name of its own."""
    if len(made) == 1:
        return made[0]
    names, outcomes = zip(*made, strict=True)
    # Whoever is scored on what these models' attackers make is one and the same model.
    model = run.scored[planned.scenarios[0].defence]
    norm = None if planned.is_bounded else NORMS[run.job.config.norm]
    worst = worst_outcome(outcomes, model, samples, norm)
    name = f"{_label(planned, epsilon)}-{fingerprint({'worst of': names})[:16]}"
    if not run.job.store.path(name).exists():
        run.job.store.write(name, worst)
    return name, worst


def _starts(planned: PlannedAttack, epsilon: float, samples: Samples, run: _Run) -> Starts | None:
    """Returns the worst images that the attackers before left at a radius; None without any.

    Who may only ask the model and has no images of his own yet takes those of the black box.
    """
    if not planned.continues:
        return None
    scenario = planned.scenarios[0]
    threat_models = [scenario.threat_model]
    if ThreatModel(scenario.threat_model).attacker.transfers:
        threat_models.append(ThreatModel.BLACK_BOX.value)
    for threat_model in threat_models:
        wanted = (scenario.defence, threat_model, epsilon)
        names = tuple(
            each.name
            for each in run.sets
            if (each.defence, each.threat_model, each.epsilon) == wanted
        )
        if names:
            model = run.scored[scenario.defence]
            return Starts(names, functools.partial(_worst_images, names, model, samples, run))
    return None


def _worst_images(
    names: Sequence[str], model: ScoredModel, samples: Samples, run: _Run
) -> np.ndarray:
    outcomes = [_first_images(name, samples, run) for name in names]
    return worst_outcome(outcomes, model, samples, None).images


def _first_images(name: str, samples: Samples, run: _Run) -> AttackOutcome:
    outcome = run.job.store.read(name, run.job.samples.images.shape)
    if outcome is None:
        path = run.job.store.path(name)
        raise SfmError(f"{path} is gone; expected the images made before. Run it again.")
    fields = [field.name for field in dataclasses.fields(AttackOutcome)]
    return AttackOutcome(**{field: getattr(outcome, field)[: len(samples)] for field in fields})


def _label(planned: PlannedAttack, epsilon: float) -> str:
    """Returns attack and radius as a file name may hold them."""
    return f"{planned.attack_name}-{epsilon:g}"  # "inf" where the attack finds its own.


def _execution(
    planned: PlannedAttack,
    digest: str,
    place: str,
    epsilon: float,
    attack: CompiledAttack,
    samples: Samples,
    run: _Run,
) -> AttackExecution:
    radius = "" if math.isinf(epsilon) else f" {epsilon:g}/255"
    scenarios = ", ".join(map(str, planned.scenarios))
    several = len(planned.digests) > 1
    stand_in = f" {planned.digests.index(digest) + 1} of {len(planned.digests)}" if several else ""
    return AttackExecution(
        attack=attack,
        label=_label(planned, epsilon),
        phrase=f"{place} {planned.attack_name}{radius}{stand_in} ({scenarios})",
        model_digest=f"{digest} {_precision(planned, run.job.config)}",
        samples=samples,
        store=run.job.store,
        progress=run.job.progress,
        starts=_starts(planned, epsilon, samples, run),
    )


def _at_radius(
    attack: CompiledAttack, epsilon: float, config: EvaluationConfig
) -> dict[str, float]:
    """Returns the options of a radius: steps are longer where all together would not cross it."""
    options = {"epsilon": epsilon / PIXEL_LEVELS}
    if "step_size" in attack.attack_params:
        options["step_size"] = step_size_at(epsilon, config) / PIXEL_LEVELS
    return options


def _precision(planned: PlannedAttack, config: EvaluationConfig) -> str:
    """Returns the arithmetic of the attacked model."""
    # The smallest perturbation of a rounded model ends at the wrong boundary, and what tips the
    # draws of a rounded model does not tip those that are scored.
    is_exact = planned.continues or not planned.is_bounded
    return "float32" if is_exact else config.attack_precision


def _attacked(
    model: keras.Model, digest: str, planned: PlannedAttack, samples: Samples, run: _Run
) -> TensorFlowV2Classifier:
    """Returns the attacked model in the arithmetic that attacks are asked to use."""
    precision, batch_size = _precision(planned, run.job.config), run.job.config.attack_batch_size
    exact = samples.wrap(model, batch_size)
    if precision == "float32":
        return exact
    rounded = samples.wrap(in_precision(model, precision), batch_size)
    if digest not in run.lost:
        run.lost[digest] = vanished_share(exact, rounded, samples, batch_size)
    for scenario in planned.scenarios:
        run.vanished[scenario] = max(run.lost[digest], run.vanished.get(scenario, 0.0))
    return rounded


def _remaining(
    planned: PlannedAttack,
    epsilon: float,
    samples: Samples,
    classifier: TensorFlowV2Classifier,
    run: _Run,
) -> RemainingImages | None:
    """Returns the images that need no further attack, or None where all are to be attacked."""
    whole = planned.is_bounded and planned.examples is None
    if not (run.job.config.robust_accuracy_only and planned.is_scored and whole):
        return None
    key = _remaining_key(planned, epsilon)
    if key not in run.remaining:
        rows = _still_right(planned, samples.images, run)
        return RemainingImages("", clean_outcome(classifier, samples), rows)
    return run.remaining[key]


def _remaining_key(planned: PlannedAttack, epsilon: float) -> _RemainingKey:
    # A weaker attacker does not inherit what a stronger one broke.
    return planned.digests[0], epsilon, frozenset(each.threat_model for each in planned.scenarios)


def _still_right(planned: PlannedAttack, images: np.ndarray, run: _Run) -> np.ndarray:
    scored = run.scored[planned.scenarios[0].defence]
    return np.flatnonzero(scored.predictions(images) == run.job.samples.labels)


def _rows(made: _MadeSet, planned: PlannedAttack, run: _Run) -> Iterator[ResultsTable]:
    outcomes = [(made.epsilon, made.outcome)]
    if not planned.is_bounded:
        clean = clean_outcome(made.classifier, made.samples)
        norm = NORMS[run.job.config.norm]
        outcomes = list(
            within_radii(made.outcome, clean, made.samples, run.job.config.epsilons, norm)
        )
    for scenario in planned.scenarios:
        model = run.scored[scenario.defence]
        for epsilon, outcome in outcomes:
            yield attack_rows(scenario, planned.attack_name, epsilon, outcome, model, made.samples)


def _stored_sets(made: _MadeSet, planned: PlannedAttack) -> Iterator[StoredSet]:
    epsilon = made.epsilon if planned.is_bounded else None
    for scenario in planned.scenarios:
        keys = (scenario.defence, scenario.threat_model, planned.attack_name)
        yield StoredSet(*keys, epsilon, made.name)
