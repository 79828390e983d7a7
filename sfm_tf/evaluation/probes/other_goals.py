"""Attacks that want or may do something else than those of the evaluation."""

from typing import Any

import numpy as np

from sfm_tf.attacks.catalogue import NORMS
from sfm_tf.evaluation.probes.answers import answer
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.radii import equal_volume_radius
from sfm_tf.evaluation.probes.setups import Variant

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
