"""Rules on the attack itself: its gradient, its loss, its convergence, and known breaks."""

import math
from collections.abc import Mapping, Sequence

from sfm_tf.audit.evidence import Evidence
from sfm_tf.audit.finding import MANY, Judgement, grade, not_run, worst
from sfm_tf.audit.probes.measurements import Answers, Repeatability, StageGradient

FEW_BLIND, MANY_BLIND = 0.02, 0.10
"""Shares of images without a usable gradient: each of them looks robust for that reason alone."""

STEEP = 1e-3
"""Share of a gradient's norm that a stage has to pass on: less is vanishing, not attenuation."""

FEW_SPARED, MANY_SPARED = 0.05, 0.20
"""Shares of the images by which a broken defence may do better than the bare classifier, and that
one better than with its logits scaled: rounding to 3 bits moves pixels by up to 1/14 itself, so
some images differ either way."""

WITHSTOOD = 0.9
"""Where the bare classifier keeps this share of its accuracy, breaking it proves little."""

NOTICED = 0.9
"""Share of the images without a gradient that have to be noticed as such."""

SPREAD = 0.10
"""By how much the accuracy of a random defence may differ between draws, in shares."""

_UNPROBED = "The audit took no measurements."


def judge_convergence(evidence: Evidence) -> Judgement:
    """Twice the steps, or more starts, break no more."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    convergence = evidence.probes.convergence
    efforts = {"twice the steps": convergence.double_iterations}
    if evidence.config.restarts < convergence.restarts:
        efforts[f"{convergence.restarts} starts"] = convergence.more_restarts
    return _judge_efforts(evidence, efforts)


def judge_step_size(evidence: Evidence) -> Judgement:
    """Neither half nor twice the step breaks more."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    convergence = evidence.probes.convergence
    efforts = {"half the step": convergence.half_step, "twice the step": convergence.double_step}
    return _judge_efforts(evidence, efforts)


def _judge_efforts(evidence: Evidence, efforts: Mapping[str, Answers]) -> Judgement:
    base = evidence.probes.convergence.base
    more = {
        words: evidence.broken_beyond(base.right_images(), effort.right_images())
        for words, effort in efforts.items()
    }
    told = "; ".join(
        f"with {words} it leaves {effort.correct} correct and breaks "
        f"{more[words] or 'no'} further images"
        for words, effort in efforts.items()
    )
    return Judgement(
        worst(grade(count, base.examples) for count in more.values()),
        f"PGD leaves {base.correct} of {base.examples} images correct; {told}.",
    )


def judge_gradients(evidence: Evidence) -> Judgement:
    """The attack saw a finite gradient at every stage of the model that is not zero."""
    probes, measured = evidence.probes, _measured_shares(evidence)
    if probes is None and not measured:
        return not_run("No gradient was measured.")
    stages = () if probes is None else probes.gradients.stages
    blind = {entry.stage: entry.zero_share + entry.not_finite_share for entry in stages}
    shares = {**blind, **measured}
    statuses = [
        "pass" if share <= FEW_BLIND else "warn" if share <= MANY_BLIND else "fail"
        for share in shares.values()
    ]
    steepest = _steepest(stages)
    figure = f"Images without a usable gradient: {_told(shares)}"
    if stages:
        norms = ", ".join(f"{entry.stage} {entry.median_norm:.2g}" for entry in stages)
        figure += f"; median norms: {norms}"
        statuses.append("warn" if steepest < STEEP else "pass")
    return Judgement(worst(statuses), f"{figure}.")


def _measured_shares(evidence: Evidence) -> dict[str, float]:
    """Returns the worst shares that the attacks of the evaluation reported."""
    zero = [
        entry.zero_gradient_share
        for entry in evidence.metrics.under_attack
        if (entry.defence, entry.threat_model) == (evidence.subject, "white_box")
    ]
    lost = [entry.share for entry in evidence.metrics.vanished_gradients]
    return {
        **({"at the start of attacks": max(zero)} if zero else {}),
        **({"entries lost in 16 bits": max(lost)} if lost else {}),
    }


def _steepest(stages: Sequence[StageGradient]) -> float:
    norms = [entry.median_norm for entry in stages]
    ratios = [after / before for before, after in zip(norms, norms[1:], strict=False) if before]
    return min(ratios, default=1.0)


def _told(shares: Mapping[str, float]) -> str:
    if not any(shares.values()):
        return "none"
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share)


def judge_loss(evidence: Evidence) -> Judgement:
    """The loss rises along the attack, to its end."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    curve = evidence.probes.curve
    losses = [entry.mean_loss for entry in curve]
    is_risen = losses[-1] > losses[0]
    is_highest = losses[-1] >= max(losses) * (1.0 - 1e-3)
    told = ", ".join(f"{entry.mean_loss:.3g} after {entry.steps}" for entry in curve)
    status = "pass" if is_risen and is_highest else "warn" if is_risen else "fail"
    return Judgement(status, f"Mean loss by number of steps: {told}.")


def judge_surrogates(evidence: Evidence) -> Judgement:
    """No other stand-in for the gradient of the pre-processing, nor none, breaks more."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    surrogates = evidence.probes.surrogates
    if not surrogates:
        return Judgement("pass", "The model has no pre-processing.")
    (used,) = (entry for entry in surrogates if entry.used)
    statuses = []
    for entry in surrogates:
        status = grade(
            evidence.broken_beyond(used.right_images(), entry.right_images()), used.examples
        )
        # What any stand-in breaks counts in the white box.
        is_counted = bool(evidence.attacks(("white_box",)))
        statuses.append("pass" if is_counted and entry.surrogate != "ignored" else status)
    told = ", ".join(f"{entry.surrogate} {entry.correct}" for entry in surrogates)
    return Judgement(
        worst(statuses),
        f"Of {used.examples} images, PGD leaves so many correct with each surrogate: {told}. The "
        f"model's own is {used.surrogate}.",
    )


def judge_parts(evidence: Evidence) -> Judgement:
    """Each part of the defence was attacked by itself, and the whole is worth more than nothing."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    parts = evidence.probes.parts
    names = {
        (False, False): "on the bare classifier",
        (True, False): "behind the masker alone",
        (False, True): "behind the pre-processing alone",
        (True, True): "behind both",
    }
    told = ", ".join(
        f"{entry.attacked.correct} {names[entry.masker, entry.preprocessor]}" for entry in parts
    )
    clean = ", ".join(str(entry.clean.correct) for entry in parts)
    whole, bare = parts[-1].attacked, parts[0].attacked
    is_idle = len(parts) > 1 and whole.correct - bare.correct <= MANY * whole.examples
    return Judgement(
        "warn" if is_idle else "pass",
        f"Of {whole.examples} images, white-box PGD leaves correct: {told} (without an attack: "
        f"{clean}).{' The defence as a whole gains too little to count.' if is_idle else ''}",
    )


def judge_known_breaks(evidence: Evidence) -> Judgement:
    """The attack breaks what is known to be broken, and notices where there is no gradient."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    found = evidence.probes.known_breaks
    clean, bare, examples = found.bare_clean.correct, found.bare.correct, found.bare.examples
    statuses = [
        grade(broken.correct - bare, examples, FEW_SPARED, MANY_SPARED)
        for broken in (found.bit_depth, found.scaled)
    ]
    # The same predictions fall more easily where the classifier's own confidence hides them.
    statuses.append(grade(bare - found.scaled.correct, examples, FEW_SPARED, MANY_SPARED))
    noticed = found.saturated_zero_share * examples
    # Of a random model, a draw that is wrong already has a gradient.
    is_noticed = evidence.is_random or noticed >= math.floor(NOTICED * clean)
    statuses.append("pass" if is_noticed else "fail")
    statuses.append("pass" if bare <= WITHSTOOD * clean else "warn")
    return Judgement(
        worst(statuses),
        f"Of {examples} images, PGD leaves {bare} correct on the bare classifier, "
        f"{found.bit_depth.correct} with a bit depth of 3 before it, and "
        f"{found.scaled.correct} with its logits scaled up. Scaling makes the gradient "
        f"vanish on {found.plain_blind_share:.0%} of the images in the plain loss, on "
        f"{found.stable_blind_share:.0%} in the loss that is used. With saturated logits, "
        f"{found.saturated_zero_share:.0%} of the images are reported as without a gradient.",
    )


_CAUSES: Mapping[str, str] = {
    "random": "draws anew for each image, and no attack averaged over the draws (EOT): set "
    "gradient_samples above 1",
    "changing": "changes from call to call, which no attack can follow",
    "batch": "depends on the other images of the batch, as batch normalisation in training mode "
    "does",
}
"""What is wrong with a model that does not answer alike, by `Repeatability.kind`."""


def judge_repeatability(evidence: Evidence) -> Judgement:
    """The model answers alike when it is asked again, or attacks average over its draws."""
    if not evidence.repeatability:
        return not_run("The model was not asked again.")
    told = "; ".join(
        f"{name} model: of {found.examples} images, {found.side_by_side.images} are answered "
        f"differently side by side in one batch, {found.calls.images} in another call, "
        f"{found.batches.images} in another batch (logits differ by up to "
        f"{max(_differences(found)):.1g} of the largest)"
        for name, found in evidence.repeatability.items()
    )
    kinds = {found.kind for found in evidence.repeatability.values()}
    faults = [kind for kind in _CAUSES if kind in kinds]
    if evidence.is_random and evidence.averages_draws:
        faults.remove("random")
        told += "; attacks average over the draws"
    causes = "".join(f" The model {_CAUSES[kind]}." for kind in faults)
    return Judgement("fail" if faults else "pass", f"Asked again, {told}.{causes}")


def _differences(found: Repeatability) -> tuple[float, ...]:
    return found.side_by_side.largest, found.calls.largest, found.batches.largest


def judge_outputs(evidence: Evidence) -> Judgement:
    """The outputs look like logits: of both signs, and not all small."""
    if not evidence.repeatability:
        return not_run("The outputs were not looked at.")
    lowest = min(found.lowest for found in evidence.repeatability.values())
    highest = max(found.highest for found in evidence.repeatability.values())
    figure = f"The model's outputs are from {lowest:.3g} to {highest:.3g}"
    if lowest < 0.0 and max(-lowest, highest) > 1.0:
        return Judgement("pass", f"{figure}.")
    return Judgement(
        "warn",
        f"{figure}; logits have both signs and are not all within [-1, 1]. The last layer may have "
        "an activation (sigmoid, tanh, ReLU) or divide by a large number: take it off.",
    )


def judge_draws(evidence: Evidence) -> Judgement:
    """A random model was asked several times, and fares alike."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    draws = evidence.probes.draws
    if not evidence.is_random:
        return Judgement("pass", "The model was not found to be random.")
    if draws is None:
        return not_run("The model is random, but it was measured with one draw only.")
    shares = {
        name: [entry.correct / entry.examples for entry in entries]
        for name, entries in (("clean", draws.clean), ("attacked", draws.attacked))
    }
    spread = max(max(values) - min(values) for values in shares.values())
    told = "; ".join(
        f"{name} {min(values):.1%} to {max(values):.1%}" for name, values in shares.items()
    )
    return Judgement(
        "pass" if spread <= SPREAD else "warn",
        f"Accuracy over {len(draws.clean)} draws: {told}.",
    )
