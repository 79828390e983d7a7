"""The evaluation's own attack on defences that are known not to work."""

from typing import Any

import numpy as np

from sfm_tf.evaluation.probes.answers import answer
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.setups import BROKEN, Setup, Variant
from sfm_tf.evaluation.probes.stage_gradients import PLAIN, STABLE, logit_blindness

LARGEST_MARGIN = 40.0
"""Of the scaled logits on clean images: from 17 on float32 rounds the probability to 1, from
88 on the stable loss has no gradient either, and a random start may double a margin."""

SATURATION = 1000.0
"""By how much more logits are scaled for no gradient to be left."""


def probe_known_breaks(bench: Bench, bare: Variant) -> dict[str, Any]:
    """Returns how the attack fares on defences that it has to break, in the same run.

    Carlini et al. 2019 ask for attack code that is shown to work where it should. A bit depth of 3
    before the bare classifier is to be as weak as the classifier alone; so are its logits, scaled
    so that the plain loss loses the label's gradient. Scaled beyond what float32 holds they leave
    no gradient, and that is to be noticed.

    Args:
        bench: Where it is measured.
        bare: The classifier without any defence.

    Returns:
        The answers without an attack, `bare_clean`, and under PGD, `bare`, `bit_depth` and
        `scaled`; `factor` that its logits are scaled by; `plain_blind_share` and
        `stable_blind_share`, of the images whose label's logit has no gradient there; and
        `saturated_zero_share`, of the images that the attack itself calls without a gradient where
        the factor is larger.
    """
    bench.report("PGD on broken defences")
    logits = bench.logits(bare.scored, bench.samples.images)
    factor = _factor(logits)
    squeezed = bare.scored._replace(preprocessor=BROKEN)
    scaled = bare.scored._replace(factor=factor)
    labels = bench.samples.labels
    return {
        "bare_clean": answer(bench.right(bare.scored, bench.samples.images)),
        "bare": answer(bench.right_under_pgd(bare)),
        "bit_depth": answer(bench.right_under_pgd(Variant(squeezed, squeezed))),
        "scaled": answer(bench.right_under_pgd(Variant(scaled, scaled))),
        "factor": factor,
        "plain_blind_share": logit_blindness(factor * logits, labels, PLAIN),
        "stable_blind_share": logit_blindness(factor * logits, labels, STABLE),
        "saturated_zero_share": _zero_share(bench, scaled._replace(factor=SATURATION * factor)),
    }


def _factor(logits: np.ndarray) -> float:
    """Returns what gives the most confident of these predictions the largest margin."""
    second, first = np.sort(logits, axis=1)[:, -2:].T
    largest = float(np.max(first - second))
    return LARGEST_MARGIN / largest if largest > 0.0 else 1.0


def _zero_share(bench: Bench, setup: Setup) -> float:
    # From the image itself: a random start can be wrong already, and then has a gradient.
    outcome = bench.pgd(setup, iterations=1, random_start=False)
    return outcome.zero_gradient_share
