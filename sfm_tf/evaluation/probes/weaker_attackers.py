"""Attackers who know less than everything, and noise, which knows nothing."""

from typing import Any

import keras
import numpy as np

from sfm_tf.attacks.validity import perturbation_sizes
from sfm_tf.evaluation.probes.answers import answer
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.setups import Setup, Variant, Variants

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
