"""What each part of the defence contributes, and how its gradient is best stood in for."""

import numpy as np

from sfm_tf.audit.probes.measurements import (
    Answers,
    Draws,
    KnownBreaks,
    PartsAnswers,
    UnderSurrogate,
)
from sfm_tf.audit.probes.probed_models import BROKEN, Ablation, Ablations, Switches
from sfm_tf.audit.probes.probing import Prober
from sfm_tf.audit.probes.stage_gradients import PLAIN, STABLE, logit_blindness
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import SURROGATES


def probe_surrogates(prober: Prober, ablations: Ablations, used: str) -> tuple[UnderSurrogate, ...]:
    """Returns the model's answers under PGD by each way to get past the pre-processing T.

    Args:
        prober: Where it is measured.
        ablations: The model under test.
        used: T's surrogate in the evaluation's white box.

    Returns:
        An entry for each surrogate and for an attacker who leaves T out. Empty without T.
    """
    whole, other = ablations.whole, ablations.other_surrogate
    if other is None:
        return ()
    prober.report("PGD by each surrogate of the pre-processing")
    (unused,) = set(SURROGATES) - {used}
    attackers = {
        used: whole,
        unused: other,
        "ignored": Ablation(whole.scored, ablations.masker_only.attacked),
    }
    return tuple(
        UnderSurrogate.of(prober.right_under_pgd(attacker), surrogate=name, used=name == used)
        for name, attacker in attackers.items()
    )


def probe_parts(prober: Prober, ablations: Ablations) -> tuple[PartsAnswers, ...]:
    """Returns the answers of the bare classifier, with each part alone, and of the whole.

    A part that the model does not have is not listed.
    """
    prober.report("ablation of the parts")
    rows = {
        (False, False): ablations.bare,
        (True, False): ablations.masker_only,
        (False, True): ablations.preprocessor_only,
        (True, True): ablations.whole,
    }
    return tuple(
        PartsAnswers(
            masker=masker,
            preprocessor=preprocessor,
            clean=Answers.of(prober.right(ablation.scored, prober.samples.images)),
            attacked=Answers.of(prober.right_under_pgd(ablation)),
        )
        for (masker, preprocessor), ablation in rows.items()
        if masker <= ablations.has_masker and preprocessor <= ablations.has_preprocessor
    )


LARGEST_MARGIN = 40.0
"""Of the scaled logits on clean images: from 17 on float32 rounds the probability to 1, from
88 on the stable loss has no gradient either, and a random start may double a margin."""

SATURATION = 1000.0
"""By how much more logits are scaled for no gradient to be left."""


def probe_known_breaks(prober: Prober, bare: Ablation) -> KnownBreaks:
    """Returns how the attack fares on defences that it has to break, in the same run.

    Carlini et al. 2019 ask for attack code that is shown to work where it should. A bit depth of 3
    before the bare classifier is to be as weak as the classifier alone; so are its logits, scaled
    so that the plain loss loses the label's gradient. Scaled beyond what float32 holds they leave
    no gradient, and that is to be noticed.

    Args:
        prober: Where it is measured.
        bare: The classifier without any defence.
    """
    prober.report("PGD on broken defences")
    logits = prober.logits(bare.scored, prober.samples.images)
    factor = _factor(logits)
    squeezed = bare.scored._replace(preprocessor=BROKEN)
    scaled = bare.scored._replace(factor=factor)
    labels = prober.samples.labels
    return KnownBreaks(
        bare_clean=Answers.of(prober.right(bare.scored, prober.samples.images)),
        bare=Answers.of(prober.right_under_pgd(bare)),
        bit_depth=Answers.of(prober.right_under_pgd(Ablation(squeezed, squeezed))),
        scaled=Answers.of(prober.right_under_pgd(Ablation(scaled, scaled))),
        factor=factor,
        plain_blind_share=logit_blindness(factor * logits, labels, PLAIN),
        stable_blind_share=logit_blindness(factor * logits, labels, STABLE),
        saturated_zero_share=_zero_share(prober, scaled._replace(factor=SATURATION * factor)),
    )


def _factor(logits: np.ndarray) -> float:
    """Returns what gives the most confident of these predictions the largest margin."""
    second, first = np.sort(logits, axis=1)[:, -2:].T
    largest = float(np.max(first - second))
    return LARGEST_MARGIN / largest if largest > 0.0 else 1.0


def _zero_share(prober: Prober, switches: Switches) -> float:
    # From the image itself: a random start can be wrong already, and then has a gradient.
    outcome = prober.pgd(switches, iterations=1, random_start=False)
    return outcome.zero_gradient_share


DRAWS = 5
"""How often each image is shown."""


def probe_draws(prober: Prober, subject: DefendedModel, whole: Ablation) -> Draws:
    """Returns the answers of a random model when it draws anew.

    The attacker's copy of the model draws anew for equal images that stand side by side in a batch.

    Args:
        prober: Where it is measured.
        subject: The model under test.
        whole: The same with all its parts.
    """
    prober.report("repeated draws")
    attacked = prober.pgd(whole.attacked).images
    return Draws(
        clean=_answers(prober, subject, prober.samples.images),
        attacked=_answers(prober, subject, attacked),
    )


def _answers(prober: Prober, subject: DefendedModel, images: np.ndarray) -> tuple[Answers, ...]:
    # All looks at an image have to be in one batch.
    size = DRAWS * max(1, prober.batch_size // DRAWS)
    classifier = prober.samples.wrap(subject.for_attacker(), size)
    logits = classifier.predict(np.repeat(images, DRAWS, axis=0), size)
    predictions = np.argmax(logits, axis=1).reshape(len(images), DRAWS)
    right = predictions == prober.samples.labels[:, None]
    return tuple(Answers.of(column) for column in right.T)
