"""Rules on attacks beside each other: what knows more has to break more."""

from collections.abc import Iterator

import numpy as np

from sfm_tf.audit.evidence import CHANCE, GRADIENT_ATTACKERS, Evidence
from sfm_tf.audit.finding import Judgement, grade, not_run, worst
from sfm_tf.audit.setting_rules import NORM_NAMES
from sfm_tf.evaluation.attack_catalogue import ATTACKS
from sfm_tf.evaluation.significance import exact_mcnemar

WEAKER = ("black_box", "gray_box", "undefended")
"""Attackers who follow the gradient of another model."""

ASKING = ("score_based", "decision_based")
"""Attackers without a gradient."""

_AUTO_ATTACKS = ("autoattack", "autoattack_rand")
_AUTO_ATTACK_PARTS = {"apgd_ce", "apgd_t", "fab_t", "square"}
_UNPROBED = "The probes were not run."


def judge_iteration(evidence: Evidence) -> Judgement:
    """Many steps break no fewer images than one."""
    lost: list[tuple[int, int]] = []
    if evidence.probes is not None:
        base, single = evidence.probes.convergence.base, evidence.probes.convergence.single_step
        lost.append((base.correct - single.correct, base.examples))
    # Where attacks only go on with what is left, the later one cannot lose.
    if not evidence.config.robust_accuracy_only:
        lost += _lost_by_iterating(evidence)
    if not lost:
        return not_run("No single-step attack was run besides an attack of many steps.")
    count, examples = max(lost, key=lambda pair: pair[0] / pair[1])
    opening = "An" if len(lost) == 1 else f"In the worst of {len(lost)} comparisons, an"
    return Judgement(
        grade(count, examples),
        f"{opening} attack of many steps left {_beside(count, examples)} a single step.",
    )


def _beside(count: int, examples: int) -> str:
    """Returns how many more images are right than in another case, up to the name of that."""
    if not count:
        return f"as many of {examples} images right as"
    return f"{abs(count)} {'more' if count > 0 else 'fewer'} of {examples} images right than"


def _lost_by_iterating(evidence: Evidence) -> Iterator[tuple[int, int]]:
    run = evidence.attacks(("white_box",))
    iterated = [name for name in run if ATTACKS[name].is_iterated]
    for epsilon in evidence.config.epsilons:
        many = evidence.right(("white_box",), epsilon, iterated)
        single = evidence.right(("white_box",), epsilon, ("fgsm",))
        if many is not None and single is not None:
            yield int(many.sum() - single.sum()), len(many)


def judge_growth(evidence: Evidence) -> Judgement:
    """A larger ball never leaves more images right."""
    curves = {"white box": _correct_by_radius(evidence)}
    if evidence.probes is not None:
        curves["PGD"] = [(entry.correct, entry.examples) for entry in evidence.probes.ladder]
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return not_run("Only one radius was attacked.")
    rises = {name: max(np.diff([c for c, _ in curve])) for name, curve in curves.items()}
    counts = "; ".join(
        f"{name} {', '.join(str(correct) for correct, _ in curve)} of {curve[0][1]}"
        for name, curve in curves.items()
    )
    statuses = (grade(rises[name], curve[0][1]) for name, curve in curves.items())
    return Judgement(worst(statuses), f"Images that stay right as the radius grows: {counts}.")


def _correct_by_radius(evidence: Evidence) -> list[tuple[int, int]]:
    rights = (evidence.right(("white_box",), radius) for radius in sorted(evidence.config.epsilons))
    return [(int(right.sum()), len(right)) for right in rights if right is not None]


def judge_huge_radius(evidence: Evidence) -> Judgement:
    """Where the ball holds every image's grey twin, no more than one class can be right."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    entry = evidence.probes.ladder[-1]
    labels, _ = evidence.clean_answers()
    most = int(np.bincount(labels[: entry.examples]).max())
    return Judgement(
        "pass" if entry.correct <= most else "fail",
        f"At a radius of {entry.epsilon:g}/255 the model is right on {entry.correct} of "
        f"{entry.examples} images; one and the same answer is right on {most} at most.",
    )


def judge_no_radius(evidence: Evidence) -> Judgement:
    """In a ball of radius 0 an attack leaves what is right without one, image by image."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    attacked = evidence.probes.no_radius.right_images()
    clean = evidence.clean()[: len(attacked)]
    test = exact_mcnemar(clean, attacked)
    count = test["only_first_right"] + test["only_second_right"]
    status = "pass" if not count else "warn" if count == 1 else "fail"
    if evidence.is_random:  # Each image has another draw.
        status = "pass" if test["p_value"] >= CHANCE else "fail"
    return Judgement(
        status,
        f"At a radius of 0 the model is right on {attacked.sum()} of {len(attacked)} images, "
        f"without an attack on {clean.sum()}; the answer to {count} images is another one.",
    )


def judge_margin(evidence: Evidence) -> Judgement:
    """A loss without a scale breaks nothing that the evaluation's attacks leave."""
    left = evidence.left()
    if left is None:
        return not_run(_UNPROBED)
    margin = evidence.probes.margin
    count = evidence.broken_beyond(left, margin.right_images())
    return Judgement(
        grade(count, margin.examples),
        f"PGD on the margin of the logits, which has no scale, leaves {margin.correct} of "
        f"{margin.examples} images right and breaks {count or 'none'} that the evaluation left.",
    )


def judge_redrawn(evidence: Evidence) -> Judgement:
    """Noise that nobody can see breaks nothing that the evaluation's attacks leave."""
    left = evidence.left()
    if left is None:
        return not_run(_UNPROBED)
    redrawn = evidence.probes.redrawn
    count = int(np.sum(left & ~redrawn.right_images()))
    status = grade(count, redrawn.examples)
    if evidence.is_random and status == "fail":  # The same image again would do as well.
        status = "warn"
    return Judgement(
        status,
        f"Of what PGD made, {redrawn.copies} copies were shown, each with noise below half a grey "
        f"level: they break {count or 'none'} of the {left.sum()} of {redrawn.examples} images "
        "that the evaluation left right.",
    )


def judge_white_box_strongest(evidence: Evidence) -> Judgement:
    """Nobody who knows less breaks an image that the white box leaves."""
    excesses = list(_excesses(evidence, WEAKER))
    if not excesses:
        return not_run("No weaker attacker was run besides the white box.")
    return _judge_excesses(excesses)


def judge_gradient_free(evidence: Evidence) -> Judgement:
    """An attack without a gradient breaks nothing that the gradient attacks leave."""
    excesses = [
        *_excesses(evidence, ASKING),
        *_excesses(evidence, ("white_box",), ("square",)),
    ]
    if evidence.probes is not None:
        square, examples = evidence.probes.square, evidence.probes.settings.examples
        where = "for which PGD left nothing"
        if square.examples:
            where = "where PGD and more effort failed"
        # Estimated for all survivors from those that Square was run on.
        broken = square.examples - square.correct
        count = broken * square.survivors / max(1, square.examples)
        excesses.append((f"Square ({where})", count, examples))
    if not excesses:
        return not_run("No attack without a gradient was run besides the white box.")
    return _judge_excesses(excesses)


def _excesses(
    evidence: Evidence, threat_models: tuple[str, ...], attacks: tuple[str, ...] | None = None
) -> Iterator[tuple[str, float, int]]:
    """Yields attackers with the images that only they break, and how many there are."""
    run = evidence.attacks(GRADIENT_ATTACKERS)
    gradient = [name for name in run if ATTACKS[name].uses_gradient]
    for threat_model in threat_models:
        counts, examples = [], evidence.examples(threat_model)
        for epsilon in evidence.config.epsilons:
            stronger = evidence.right(GRADIENT_ATTACKERS, epsilon, gradient)
            weaker = evidence.right((threat_model,), epsilon, attacks)
            if stronger is not None and weaker is not None:
                counts.append(evidence.broken_beyond(stronger, weaker))
        if counts:
            yield threat_model.replace("_", " "), max(counts), examples


def _judge_excesses(excesses: list[tuple[str, float, int]]) -> Judgement:
    told = "; ".join(f"{name} {count:.0f} of {examples}" for name, count, examples in excesses)
    status = worst(grade(count, examples) for _, count, examples in excesses)
    return Judgement(status, f"Images that only the weaker attacker breaks: {told}.")


def judge_noise(evidence: Evidence) -> Judgement:
    """Random points of the ball break nothing that PGD leaves, and less than a transfer does."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    base, uniform = evidence.probes.convergence.base, evidence.probes.noise.uniform
    count = evidence.broken_beyond(base.right_images(), uniform.right_images())
    status = grade(count, base.examples)
    figure = (
        f"The worst of 100 random points leaves {uniform.correct} of {base.examples} images right, "
        f"PGD {base.correct}; only noise breaks {count}"
    )
    transfers = {entry.source: entry.correct for entry in evidence.probes.transfer}
    if "independent" in transfers:
        figure += f"; images made on another model leave {transfers['independent']}"
        # A transfer that is no better than noise says nothing about the defence.
        idle = grade(transfers["independent"] - uniform.correct, base.examples)
        status = worst((status, "pass" if idle == "pass" else "warn"))
    return Judgement(status, f"{figure}.")


def judge_gaussian_noise(evidence: Evidence) -> Judgement:
    """Noise of no direction, as large as PGD's, breaks nothing that PGD leaves."""
    if evidence.probes is None:
        return not_run(_UNPROBED)
    base, noise = evidence.probes.convergence.base, evidence.probes.noise
    broken = evidence.broken_beyond(base.right_images(), noise.gaussian.right_images())
    return Judgement(
        grade(broken, base.examples),
        f"Under Gaussian noise as large as PGD's perturbation, {noise.gaussian_l2:.2f} in L2 in "
        f"the median, the model is right on {noise.gaussian.correct} of {base.examples} images.",
    )


def judge_transfer(evidence: Evidence) -> Judgement:
    """Images made on other models were tried, and break nothing that PGD leaves."""
    probes = evidence.probes
    if probes is None or not probes.transfer:
        if evidence.attacks(("black_box",)):
            return Judgement("pass", "The black box tried images made on another model.")
        return not_run("No image made on another model was tried.")
    base = probes.convergence.base.right_images()
    excesses = [
        (f"{entry.source} model", evidence.broken_beyond(base, entry.right_images()), len(base))
        for entry in probes.transfer
    ]
    left = "; ".join(f"{entry.source} model {entry.correct}" for entry in probes.transfer)
    status, figure = _judge_excesses(excesses)
    return Judgement(
        status, f"Images that stay right, by the model they were made on: {left}. {figure}"
    )


def judge_diversity(evidence: Evidence) -> Judgement:
    """AutoAttack, an attack that asks for scores and one that asks for labels were run."""
    gradient = set(evidence.attacks(("white_box",)))
    probes = evidence.probes
    asked = {
        "AutoAttack in the white box": bool(gradient & set(_AUTO_ATTACKS))
        or gradient >= _AUTO_ATTACK_PARTS,
        "a score-based attack on all images": bool(evidence.attacks(("score_based",)))
        or "square" in gradient,
        "a decision-based attack": bool(evidence.attacks(("decision_based",))),
    }
    if not any(asked.values()) and probes is None:
        return not_run("Neither AutoAttack nor an attack without a gradient was run.")
    missing = [what for what, is_done in asked.items() if not is_done]
    if missing:
        probed = f" Square was probed with {probes.square.queries} queries." if probes else ""
        return Judgement("warn", f"Not run: {', '.join(missing)}.{probed}")
    *others, last = asked
    return Judgement("pass", f"These were run: {', '.join(others)} and {last}.")


def judge_goals(evidence: Evidence) -> Judgement:
    """An attack towards a class breaks no more than one away from the label, in any norm."""
    probes = evidence.probes
    if probes is None:
        return not_run(_UNPROBED)
    base, targeted, other = probes.convergence.base, probes.targeted, probes.other_norm
    clean = probes.ladder[0].correct
    status = grade(
        evidence.broken_beyond(base.right_images(), targeted.right_images()), base.examples
    )
    # At the same volume one norm may well be harder, but it cannot be harmless.
    is_idle = clean > base.correct and other.correct >= clean
    return Judgement(
        worst((status, "warn" if is_idle else "pass")),
        f"PGD towards a random class reaches it on {targeted.reached} of {base.examples} images "
        f"and leaves {targeted.correct} right; PGD away from the label leaves {base.correct}, and "
        f"in the {NORM_NAMES[other.norm]} norm, in a ball of the same volume, {other.correct}.",
    )
