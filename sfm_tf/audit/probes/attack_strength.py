"""Whether PGD gets stronger as it should with a larger ball, and no stronger with more effort."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from sfm_tf.attacks.attack import perturbation_sizes
from sfm_tf.attacks.redraw import NOISE
from sfm_tf.audit.probes.measurements import (
    AfterSteps,
    Answers,
    AtRadius,
    Convergence,
    InNorm,
    NoiseAnswers,
    Redrawn,
    SquareAnswers,
    TargetedAnswers,
    Transferred,
)
from sfm_tf.audit.probes.probed_models import Ablation, Ablations, Switches
from sfm_tf.audit.probes.probing import Prober, equal_volume_radius, ladder_radii
from sfm_tf.evaluation.attack_catalogue import NORMS
from sfm_tf.settings import PIXEL_LEVELS

MORE_RESTARTS = 3
"""Random starts beside the first, for the attack that spends more on them."""


EFFORTS: Mapping[str, Callable[[Prober], dict[str, Any]]] = {
    "base": lambda prober: {},
    "single_step": lambda prober: {"step_size": prober.epsilon, "iterations": 1},
    "double_iterations": lambda prober: {"iterations": 2 * prober.config.iterations},
    "more_restarts": lambda prober: {
        "restarts": MORE_RESTARTS,
        "seed": (prober.seed + 1) % 2**31,
    },
    "half_step": lambda prober: {"step_size": 0.5 * prober.step_size(prober.epsilon)},
    "double_step": lambda prober: {"step_size": 2.0 * prober.step_size(prober.epsilon)},
}
"""What PGD does otherwise, by the name of the answers."""


def probe_ladder(prober: Prober, whole: Ablation) -> tuple[AtRadius, ...]:
    """Returns the answers under PGD at radii from none to one that allows everything."""
    prober.report("PGD at rising radii")
    clean = prober.right(whole.scored, prober.samples.images)
    radii = ladder_radii(prober.epsilon, prober.config.norm, prober.dimensions)
    attacked = ((radius, prober.right_under_pgd(whole, epsilon=radius)) for radius in radii)
    return tuple(AtRadius.of(right, epsilon=at) for at, right in [(0.0, clean), *attacked])


def probe_no_radius(prober: Prober, whole: Ablation) -> Answers:
    """Returns the answers under PGD in a ball of radius 0, which allows no change."""
    prober.report("PGD at radius 0")
    return Answers.of(prober.right_under_pgd(whole, epsilon=0.0))


def probe_margin(prober: Prober, whole: Ablation) -> Answers:
    """Returns the answers under PGD that climbs the margin, at any scale of the logits alike."""
    prober.report("PGD on the margin")
    return Answers.of(prober.right_under_pgd(whole, loss="margin"))


COPIES = 10
"""Noisy copies of each image."""


def probe_redrawn(prober: Prober, whole: Ablation) -> Redrawn:
    """Returns the answers on copies of what PGD made that nobody could tell from it.

    A model that draws from a hash of the image, or that rounds, may answer each of them otherwise,
    and an attacker can try them without any gradient.
    """
    prober.report("invisible noise")
    images, random = prober.pgd(whole.attacked).images, np.random.default_rng(prober.seed)
    right = prober.right(whole.scored, images)
    for _ in range(COPIES):
        noise = random.uniform(-NOISE, NOISE, images.shape) / PIXEL_LEVELS
        right &= prober.right(whole.scored, prober.within_ball(images + noise))
    return Redrawn.of(right, copies=COPIES)


def probe_convergence(prober: Prober, whole: Ablation) -> Convergence:
    """Returns the answers under PGD that takes more, longer or shorter steps."""
    prober.report("PGD with more effort")
    right = {
        name: prober.right_under_pgd(whole, **changes(prober)) for name, changes in EFFORTS.items()
    }
    right["more_restarts"] &= right["base"]
    answers = {name: Answers.of(values) for name, values in right.items()}
    return Convergence(**answers, restarts=1 + MORE_RESTARTS)


def probe_curve(prober: Prober, whole: Ablation) -> tuple[AfterSteps, ...]:
    """Returns the loss after ever more steps of one and the same ascent, none first.

    It is that of the iterate that the evaluation would keep, so it can stand still but hardly fall.
    """
    prober.report("loss along PGD")
    numbers = (0, *_step_numbers(prober.config.iterations))
    return tuple(_after_steps(prober, whole, steps) for steps in numbers)


def _step_numbers(iterations: int) -> Iterator[int]:
    """Yields 1, 2, 5, 10, 20, 50 and so on below `iterations`, then that."""
    scale = 1
    while scale < iterations:
        yield from (scale * number for number in (1, 2, 5) if scale * number < iterations)
        scale *= 10
    yield iterations


def _after_steps(prober: Prober, whole: Ablation, steps: int) -> AfterSteps:
    images, loss = prober.samples.images, prober.clean_loss(whole.attacked)
    if steps:
        outcome = prober.pgd(whole.attacked, iterations=steps)
        images, loss = outcome.images, outcome.loss
    return AfterSteps(
        steps=steps,
        median_loss=float(np.median(loss)),
        mean_loss=float(np.mean(loss, dtype=np.float64)),
        success=float(np.mean(~prober.right(whole.scored, images))),
    )


SQUARE_EXAMPLES = 50
"""Images at most that Square spends its queries on."""

SQUARE_QUERIES = 1000
"""Queries at most for each of them."""


def probe_noise(prober: Prober, whole: Ablation) -> NoiseAnswers:
    """Returns the answers under random noise."""
    prober.report("noise")
    images = prober.samples.images
    uniform = prober.run("noise", whole.attacked, np.arange(len(images)))
    noisy = _with_gaussian_noise(images, prober.pgd(whole.attacked).images, prober.seed)
    return NoiseAnswers(
        uniform=Answers.of(prober.right(whole.scored, uniform)),
        gaussian=Answers.of(prober.right(whole.scored, noisy)),
        gaussian_l2=float(np.median(perturbation_sizes(images, noisy, 2.0))),
    )


def _with_gaussian_noise(images: np.ndarray, attacked: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(images.shape)
    sizes = perturbation_sizes(images, attacked, 2.0)
    lengths = sizes / np.linalg.norm(noise.reshape(len(images), -1), axis=1)
    noisy = images + lengths[:, None, None, None] * noise
    return np.clip(noisy, 0.0, 1.0).astype(np.float32)


def probe_square(prober: Prober, whole: Ablation, left: np.ndarray) -> SquareAnswers:
    """Returns the answers under an attack that only asks for logits, where gradients failed.

    An image that it breaks has hidden its gradient.

    Args:
        prober: Where it is measured.
        whole: The model.
        left: Bool `(count,)`: whether the model is right after every attack by gradient.
    """
    prober.report("Square")
    survivors = np.flatnonzero(left)
    rows = survivors[:SQUARE_EXAMPLES]
    queries = min(prober.config.square_queries, SQUARE_QUERIES)
    right = np.ones(0, bool)
    if len(rows):
        made = prober.run("square", whole.attacked, rows, square_queries=queries)
        right = np.argmax(prober.logits(whole.scored, made), axis=1) == prober.samples.labels[rows]
    return SquareAnswers.of(right, queries=queries, survivors=len(survivors))


def probe_transfer(
    prober: Prober, ablations: Ablations, source: keras.Model | None
) -> tuple[Transferred, ...]:
    """Returns the answers on images that PGD made on other models.

    Args:
        prober: Where it is measured.
        ablations: The model under test and its bare classifier.
        source: An independent model; None where there is none.
    """
    prober.report("transfer")
    sources: dict[str, Switches | keras.Model] = {} if source is None else {"independent": source}
    if ablations.bare != ablations.whole:
        sources["bare"] = ablations.bare.attacked
    scored = ablations.whole.scored
    return tuple(
        Transferred.of(prober.right(scored, prober.pgd(model).images), source=name)
        for name, model in sources.items()
    )


# Madry et al. 2018 take steps that together are 2.5 radii long.
_WAY = 2.5


def probe_targeted(prober: Prober, whole: Ablation) -> TargetedAnswers:
    """Returns the answers under PGD towards a wrong class that is drawn for each image."""
    prober.report("targeted PGD")
    targets = _targets(prober.samples.labels, prober.samples.class_count, prober.seed)
    images = prober.pgd(whole.attacked, classes=targets).images
    predictions = np.argmax(prober.logits(whole.scored, images), axis=1)
    right = predictions == prober.samples.labels
    return TargetedAnswers.of(right, reached=int(np.sum(predictions == targets)))


def _targets(labels: np.ndarray, class_count: int, seed: int) -> np.ndarray:
    away = np.random.default_rng(seed).integers(1, class_count, len(labels))
    return (labels + away) % class_count


def probe_other_norm(prober: Prober, whole: Ablation) -> InNorm:
    """Returns the answers under PGD in the norm that the evaluation does not use.

    The radius is the one at which its ball has the same volume.
    """
    prober.report("PGD in the other norm")
    (other,) = set(NORMS) - {prober.config.norm}
    epsilon = equal_volume_radius(prober.epsilon, prober.config.norm, prober.dimensions)
    right = prober.right_under_pgd(
        whole,
        norm=NORMS[other],
        epsilon=epsilon,
        step_size=_WAY * epsilon / prober.config.iterations,
    )
    return InNorm.of(right, norm=other, epsilon=epsilon)
