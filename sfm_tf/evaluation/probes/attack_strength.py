"""Whether PGD gets stronger as it should with a larger ball, and no stronger with more effort."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from sfm_tf.evaluation.probes.answers import answer
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.radii import ladder_radii
from sfm_tf.evaluation.probes.setups import Variant

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
