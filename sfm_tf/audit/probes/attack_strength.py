"""Whether PGD gets stronger as it should with a larger ball, and no stronger with more effort."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from sfm_tf.attacks.attack import perturbation_sizes
from sfm_tf.audit.probes.probed_models import Setup, Variant, Variants
from sfm_tf.audit.probes.probing import Bench, answer, equal_volume_radius, ladder_radii
from sfm_tf.evaluation.attack_catalogue import NORMS

MORE_RESTARTS = 3
"""Random starts beside the first, for the attack that spends more on them."""


EFFORTS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "base": lambda bench: {},
    "single_step": lambda bench: {"step_size": bench.epsilon, "iterations": 1},
    "double_iterations": lambda bench: {"iterations": 2 * bench.config.iterations},
    "more_restarts": lambda bench: {
        "restarts": MORE_RESTARTS,
        "seed": (bench.seed + 1) % 2**31,
    },
    "half_step": lambda bench: {"step_size": 0.5 * bench.step_size(bench.epsilon)},
    "double_step": lambda bench: {"step_size": 2.0 * bench.step_size(bench.epsilon)},
}
"""What PGD does otherwise, by the name of the answers."""


def probe_ladder(bench: Bench, whole: Variant) -> list[dict[str, Any]]:
    """Returns the answers under PGD at radii from none to one that allows everything.

    Returns:
        For each radius `epsilon`, in 1/255, and the answers; that of 0 is without an attack.
    """
    bench.report("PGD at rising radii")
    clean = bench.right(whole.scored, bench.samples.images)
    radii = ladder_radii(bench.epsilon, bench.config.norm, bench.dimensions)
    attacked = ((radius, bench.right_under_pgd(whole, epsilon=radius)) for radius in radii)
    return [{"epsilon": radius, **answer(right)} for radius, right in [(0.0, clean), *attacked]]


def probe_convergence(bench: Bench, whole: Variant) -> dict[str, Any]:
    """Returns the answers under PGD that takes more, longer or shorter steps.

    Returns:
        The answers for `base`, the settings of the evaluation with one random start,
        `single_step`, one step of the radius, `double_iterations`, `more_restarts`, which counts
        the first too, `half_step` and `double_step`; and `restarts`, the number of the fourth.
    """
    bench.report("PGD with more effort")
    right = {
        name: bench.right_under_pgd(whole, **changes(bench)) for name, changes in EFFORTS.items()
    }
    right["more_restarts"] &= right["base"]
    answers = {name: answer(values) for name, values in right.items()}
    return {**answers, "restarts": 1 + MORE_RESTARTS}


def probe_curve(bench: Bench, whole: Variant) -> list[dict[str, Any]]:
    """Returns the loss after ever more steps of one and the same ascent.

    It is that of the iterate that the evaluation would keep, so it can stand still but hardly fall.

    Returns:
        For each number of `steps`, none first: `median_loss` and `mean_loss`, the stable
        cross-entropy on the attacked model, and `success`, the share of the images that the scored
        model is wrong on.
    """
    bench.report("loss along PGD")
    return [_point(bench, whole, steps) for steps in (0, *_step_numbers(bench.config.iterations))]


def _step_numbers(iterations: int) -> Iterator[int]:
    """Yields 1, 2, 5, 10, 20, 50 and so on below `iterations`, then that."""
    scale = 1
    while scale < iterations:
        yield from (scale * number for number in (1, 2, 5) if scale * number < iterations)
        scale *= 10
    yield iterations


def _point(bench: Bench, whole: Variant, steps: int) -> dict[str, Any]:
    images, loss = bench.samples.images, bench.clean_loss(whole.attacked)
    if steps:
        outcome = bench.pgd(whole.attacked, iterations=steps)
        images, loss = outcome.images, outcome.loss
    return {
        "steps": steps,
        "median_loss": float(np.median(loss)),
        "mean_loss": float(np.mean(loss, dtype=np.float64)),
        "success": float(np.mean(~bench.right(whole.scored, images))),
    }


SQUARE_EXAMPLES = 50
"""Images at most that Square spends its queries on."""

SQUARE_QUERIES = 1000
"""Queries at most for each of them."""


def probe_noise(bench: Bench, whole: Variant) -> dict[str, Any]:
    """Returns the answers under random noise.

    Returns:
        `uniform`, the worst of 100 points of the ball for each image; `gaussian`, noise of the L2
        norm that PGD's perturbation of the image has, clipped to [0, 1]; and `gaussian_l2`, its
        median norm after that.
    """
    bench.report("noise")
    images = bench.samples.images
    uniform = bench.run("noise", whole.attacked, np.arange(len(images)))
    noisy = _with_gaussian_noise(images, bench.pgd(whole.attacked).images, bench.seed)
    return {
        "uniform": answer(bench.right(whole.scored, uniform)),
        "gaussian": answer(bench.right(whole.scored, noisy)),
        "gaussian_l2": float(np.median(perturbation_sizes(images, noisy, 2.0))),
    }


def _with_gaussian_noise(images: np.ndarray, attacked: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(images.shape)
    sizes = perturbation_sizes(images, attacked, 2.0)
    lengths = sizes / np.linalg.norm(noise.reshape(len(images), -1), axis=1)
    noisy = images + lengths[:, None, None, None] * noise
    return np.clip(noisy, 0.0, 1.0).astype(np.float32)


def probe_square(bench: Bench, whole: Variant, left: np.ndarray) -> dict[str, Any]:
    """Returns the answers under an attack that only asks for logits, where gradients failed.

    An image that it breaks has hidden its gradient.

    Args:
        bench: Where it is measured.
        whole: The model.
        left: Bool `(count,)`: whether the model is right after every attack by gradient.

    Returns:
        `queries`, at most, of each image; `survivors`, how many images were left; and the answers
        on the first of those.
    """
    bench.report("Square")
    survivors = np.flatnonzero(left)
    rows = survivors[:SQUARE_EXAMPLES]
    queries = min(bench.config.square_queries, SQUARE_QUERIES)
    right = np.ones(0, bool)
    if len(rows):
        made = bench.run("square", whole.attacked, rows, square_queries=queries)
        right = np.argmax(bench.logits(whole.scored, made), axis=1) == bench.samples.labels[rows]
    return {"queries": queries, "survivors": len(survivors), **answer(right)}


def probe_transfer(
    bench: Bench, variants: Variants, source: keras.Model | None
) -> list[dict[str, Any]]:
    """Returns the answers on images that PGD made on other models.

    Args:
        bench: Where it is measured.
        variants: The model under test and its bare classifier.
        source: An independent model; None where there is none.

    Returns:
        Entries of `source`, `independent` or `bare` for the classifier without its defence, and the
        answers.
    """
    bench.report("transfer")
    sources: dict[str, Setup | keras.Model] = {} if source is None else {"independent": source}
    if variants.bare != variants.whole:
        sources["bare"] = variants.bare.attacked
    scored = variants.whole.scored
    return [
        {"source": name, **answer(bench.right(scored, bench.pgd(model).images))}
        for name, model in sources.items()
    ]


# Madry et al. 2018 take steps that together are 2.5 radii long.
_WAY = 2.5


def probe_targeted(bench: Bench, whole: Variant) -> dict[str, Any]:
    """Returns the answers under PGD towards a wrong class that is drawn for each image.

    Returns:
        The answers, and `reached`, on how many images the model says that class.
    """
    bench.report("targeted PGD")
    targets = _targets(bench.samples.labels, bench.samples.class_count, bench.seed)
    images = bench.pgd(whole.attacked, classes=targets).images
    predictions = np.argmax(bench.logits(whole.scored, images), axis=1)
    right = predictions == bench.samples.labels
    return {**answer(right), "reached": int(np.sum(predictions == targets))}


def _targets(labels: np.ndarray, class_count: int, seed: int) -> np.ndarray:
    away = np.random.default_rng(seed).integers(1, class_count, len(labels))
    return (labels + away) % class_count


def probe_other_norm(bench: Bench, whole: Variant) -> dict[str, Any]:
    """Returns the answers under PGD in the norm that the evaluation does not use.

    Returns:
        `norm`, the radius `epsilon` in 1/255 at which its ball has the same volume, and the
        answers.
    """
    bench.report("PGD in the other norm")
    (other,) = set(NORMS) - {bench.config.norm}
    epsilon = equal_volume_radius(bench.epsilon, bench.config.norm, bench.dimensions)
    right = bench.right_under_pgd(
        whole,
        norm=NORMS[other],
        epsilon=epsilon,
        step_size=_WAY * epsilon / bench.config.iterations,
    )
    return {"norm": other, "epsilon": epsilon, **answer(right)}
