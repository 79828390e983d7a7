"""What each part of the defence contributes, and how its gradient is best stood in for."""

from typing import Any

import numpy as np

from sfm_tf.audit.probes.probed_models import BROKEN, Setup, Variant, Variants
from sfm_tf.audit.probes.probing import Bench, answer
from sfm_tf.audit.probes.stage_gradients import PLAIN, STABLE, logit_blindness
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import SURROGATES


def probe_surrogates(bench: Bench, variants: Variants, used: str) -> list[dict[str, Any]]:
    """Returns the model's answers under PGD by each way to get past the pre-processing T.

    Args:
        bench: Where it is measured.
        variants: The model under test.
        used: T's surrogate in the evaluation's white box.

    Returns:
        Entries of `surrogate`, `identity`, `smooth` or `ignored` for an attacker who leaves T out,
        whether it is `used` by the evaluation's white box, and the answers. Empty without T.
    """
    whole, other = variants.whole, variants.other_surrogate
    if other is None:
        return []
    bench.report("PGD by each surrogate of the pre-processing")
    (unused,) = set(SURROGATES) - {used}
    attackers = {
        used: whole,
        unused: other,
        "ignored": Variant(whole.scored, variants.masker_only.attacked),
    }
    return [
        {"surrogate": name, "used": name == used, **answer(bench.right_under_pgd(attacker))}
        for name, attacker in attackers.items()
    ]


def probe_parts(bench: Bench, variants: Variants) -> list[dict[str, Any]]:
    """Returns the answers of the bare classifier, with each part alone, and of the whole.

    Each is attacked in the white box.

    Returns:
        Entries of `masker` and `preprocessor`, whether that part is there, and the answers `clean`
        and `attacked`. A part that the model does not have is not listed.
    """
    bench.report("ablation of the parts")
    rows = {
        (False, False): variants.bare,
        (True, False): variants.masker_only,
        (False, True): variants.preprocessor_only,
        (True, True): variants.whole,
    }
    return [
        {
            "masker": masker,
            "preprocessor": preprocessor,
            "clean": answer(bench.right(variant.scored, bench.samples.images)),
            "attacked": answer(bench.right_under_pgd(variant)),
        }
        for (masker, preprocessor), variant in rows.items()
        if masker <= variants.has_masker and preprocessor <= variants.has_preprocessor
    ]


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


DRAWS = 5
"""How often each image is shown."""


def probe_draws(bench: Bench, subject: DefendedModel, whole: Variant) -> dict[str, Any]:
    """Returns the answers of a random defence when it draws anew.

    The attacker's copy of the model draws anew for equal images that stand side by side in a batch.

    Args:
        bench: Where it is measured.
        subject: The model under test.
        whole: The same as a variant.

    Returns:
        `clean` and `attacked`, without and under PGD: the answers for each of the draws.
    """
    bench.report("repeated draws")
    images = {"clean": bench.samples.images, "attacked": bench.pgd(whole.attacked).images}
    return {name: _answers(bench, subject, shown) for name, shown in images.items()}


def _answers(bench: Bench, subject: DefendedModel, images: np.ndarray) -> list[dict[str, Any]]:
    # All looks at an image have to be in one batch.
    size = DRAWS * max(1, bench.batch_size // DRAWS)
    classifier = bench.samples.wrap(subject.for_attacker(), size)
    logits = classifier.predict(np.repeat(images, DRAWS, axis=0), size)
    predictions = np.argmax(logits, axis=1).reshape(len(images), DRAWS)
    right = predictions == bench.samples.labels[:, None]
    return [answer(column) for column in right.T]
