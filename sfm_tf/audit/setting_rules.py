"""Rules on what was measured, on what, and how it is stated."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sfm_tf.audit.evidence import GRADIENT_ATTACKERS, Evidence
from sfm_tf.audit.finding import Judgement, not_run
from sfm_tf.defences.catalogue import broken_by
from sfm_tf.evaluation.attack_catalogue import ATTACKS
from sfm_tf.evaluation.results import CLEAN, OWN_MODEL, UNDEFENDED
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.significance import exact_mcnemar, wilson_interval
from sfm_tf.settings import PIXEL_LEVELS

NORM_NAMES: Mapping[str, str] = {"inf": "L∞", "2": "L2"}

NARROW, WIDE = 0.05, 0.10
"""Half-widths of the 95 % interval of the headline: at 5 points a gain of 10 is real, at more than
10 a single figure says little. Some 400 and 100 images give them."""

_TOLERANCE = 1e-5  # Float32 sums of a whole image round by as much.

_RECORDED = ("adversarial-robustness-toolbox", "keras", "numpy", "tensorflow")


def judge_threat_model(evidence: Evidence) -> Judgement:
    """Every attacker that was run is one that the settings state, with a budget."""
    config = evidence.config
    measured = {
        entry.threat_model
        for entry in (*evidence.metrics.under_attack, *evidence.metrics.minimum_norm)
    }
    unstated = sorted(measured - set(config.threat_models))
    if not measured:
        return Judgement("fail", "No attack was run.")
    if unstated:
        names = ", ".join(unstated).replace("_", " ")
        return Judgement("fail", f"The settings do not name these threat models: {names}.")
    return Judgement(
        "pass",
        f"The attacker wants any wrong class within an {NORM_NAMES[config.norm]} radius of "
        f"{radii_in_words(config)}, for values from 0 to 1; the threat models are "
        f"{', '.join(sorted(measured)).replace('_', ' ')}.",
    )


def radii_in_words(config: EvaluationConfig) -> str:
    """Returns the radii, each also as a decimal: `8/255 = 0.0314`."""
    return ", ".join(f"{radius:g}/255 = {radius / PIXEL_LEVELS:.3g}" for radius in config.epsilons)


SMALL_RADII: Mapping[str, float] = {"inf": 0.5, "2": 10.0}
"""Radii in 1/255, by norm, below which no one attacks: in L-infinity such a change is lost when an
image is stored in 8 bits. Published L2 radii start at 0.1, which is 25.5."""


def radius_doubt(config: EvaluationConfig) -> str | None:
    """Returns a sentence if all radii are so small that another unit was meant; else None."""
    largest, limit = max(config.epsilons), SMALL_RADII[config.norm]
    if largest >= limit:
        return None
    meant = largest * PIXEL_LEVELS
    question = f" Did you mean {meant:.3g}?" if meant <= PIXEL_LEVELS else ""
    return (
        f"The largest {NORM_NAMES[config.norm]} radius is {largest:g}/255 = "
        f"{largest / PIXEL_LEVELS:.2g}, below {limit:g}/255; --epsilons are in 1/255.{question}"
    )


def judge_radius(evidence: Evidence) -> Judgement:
    """The largest radius is one that is used."""
    doubt = radius_doubt(evidence.config)
    if doubt:
        return Judgement("warn", doubt)
    return Judgement("pass", f"The radii are {radii_in_words(evidence.config)}.")


def judge_same_samples(evidence: Evidence) -> Judgement:
    """Every row of the tables is about the same images, the first ones of the test split."""
    results, total = evidence.results, sum(evidence.class_counts.values())
    keys = ["defence", "threat_model", "attack", "epsilon"]
    groups = results.group_by(keys).aggregate(
        [("image_index", name) for name in ("count", "count_distinct", "min", "max")]
    )
    allowed = {total, min(total, evidence.config.decision_examples)}
    odd = [
        group
        for group in groups.to_pylist()
        if not _is_first(group, {total} if group["attack"] == CLEAN else allowed)
    ]
    labels = results.group_by(["image_index"]).aggregate([("label", "count_distinct")])
    if odd or pc.max(labels["label_count_distinct"]).as_py() != 1:
        if odd:
            which = "the row " + ", ".join(str(odd[0][key]) for key in keys)
        else:
            which = "the label of an image"
        return Judgement("fail", f"Not all rows use the same {total} images: {which} differs.")
    fewest, most = min(evidence.class_counts.values()), max(evidence.class_counts.values())
    balance = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    figure = (
        f"All rows use the same {total} images, {balance} in each of "
        f"{len(evidence.class_counts)} classes; all of them count, also those the model gets wrong "
        "without an attack."
    )
    return Judgement("pass" if fewest else "warn", figure)


def _is_first(group: dict[str, Any], allowed: set[int]) -> bool:
    count = group["image_index_count"]
    consecutive = (group["image_index_min"], group["image_index_max"]) == (0, count - 1)
    return consecutive and count == group["image_index_count_distinct"] and count in allowed


def judge_clean_accuracy(evidence: Evidence) -> Judgement:
    """The cost of the defence is there to see."""
    clean = {entry.defence: entry for entry in evidence.metrics.clean}
    subject = evidence.subject
    needs_bare = subject not in (OWN_MODEL, UNDEFENDED)
    if needs_bare and UNDEFENDED not in clean:
        return not_run("The classifier without its defence was not scored.")
    named = {UNDEFENDED: "without the defence", subject: "as it is evaluated"}
    figure = "Without an attack the model is right " + " and ".join(
        f"on {clean[name].correct} of {clean[name].examples} images {words}"
        for name, words in named.items()
        if name in clean
    )
    return Judgement("pass", f"{figure}.")


_LEVEL = 0.05
"""Of the test whether a model is better than the same answer to every image."""


def judge_chance(evidence: Evidence) -> Judgement:
    """The model is right on more images than whoever always names the most frequent class."""
    labels, predictions = evidence.clean_answers()
    names = list(evidence.class_counts)
    most, answers = np.bincount(labels), np.bincount(predictions)
    test = exact_mcnemar(predictions == labels, labels == np.argmax(most))
    low, high = wilson_interval(int(most.max()), len(labels))
    figure = (
        f"Without an attack the model is right on {np.sum(predictions == labels)} of {len(labels)} "
        f"images; always answering {names[np.argmax(most)]!r} is right on {most.max()} "
        f"({most.max() / len(labels):.1%}, 95% interval {100 * low:.1f}–{100 * high:.1f}%)."
    )
    if answers.max() == len(labels):
        named = names[np.argmax(answers)]
        figure += f" It predicts one class only: {named!r} on all {len(labels)} images."
    is_better = test["only_first_right"] > test["only_second_right"] and test["p_value"] < _LEVEL
    return Judgement("pass" if is_better else "fail", figure)


def judge_white_box(evidence: Evidence) -> Judgement:
    """An attacker who knows everything followed the gradient of the whole model."""
    attacks = evidence.attacks(("white_box",))
    if not attacks:
        return not_run("No attack followed the gradient of the whole model.")
    kinds = [ATTACKS[name] for name in attacks]
    figure = f"The whole model was attacked by {', '.join(kind.title for kind in kinds)}"
    if any(kind.uses_gradient and kind.is_iterated for kind in kinds):
        return Judgement("pass", f"{figure}.")
    return Judgement("warn", f"{figure}; none of them follows the gradient in many steps.")


def judge_adaptive(evidence: Evidence) -> Judgement:
    """Attacks went through each part of the defence by the means that the part asks for."""
    probes, attacks = evidence.probes, evidence.attacks(GRADIENT_ATTACKERS)
    aimed = [name for name in attacks if "adaptive" in ATTACKS[name].threat_models]
    if probes is None:
        if not aimed:
            return not_run("No attack aimed at the parts of the defence.")
        return Judgement("pass", f"The parts were attacked by {', '.join(aimed)}.")
    surrogates = len(probes.surrogates) > 1 or bool(evidence.attacks(("white_box",)))
    parts = probes.subject
    asked = {
        "attacks at the mask (threat model adaptive)": (parts.masker, bool(aimed)),
        "both surrogates of the pre-processing": (parts.preprocessor != "none", surrogates),
    }
    done = [what for what, (is_asked, is_done) in asked.items() if is_asked and is_done]
    missing = [what for what, (is_asked, is_done) in asked.items() if is_asked and not is_done]
    if missing:
        return Judgement("warn", f"Missing: {'; '.join(missing)}.")
    if not done:
        return Judgement("pass", "There is no part of a defence to aim at.")
    return Judgement("pass", f"Run besides the gradient of the whole model: {'; '.join(done)}.")


def judge_worst_case(evidence: Evidence) -> Judgement:
    """The headline is the mean over images of the minimum over attacks, no minimum of means."""
    entry = evidence.metrics.worst(evidence.subject)
    if entry is None:
        return not_run("No attack was run on the model.")
    results = evidence.results
    condition = pc.and_(
        pc.equal(results["defence"], evidence.subject), pc.is_finite(results["epsilon"])
    )
    rows = results.filter(condition)
    wrong = rows.filter(pc.not_equal(rows["prediction"], rows["label"]))
    images = len(pc.unique(rows["image_index"]))
    right = images - len(pc.unique(wrong["image_index"]))
    winner = ATTACKS[entry.strongest_attack].title if entry.strongest_attack else "no attack"
    won = f"{winner} broke {'the most images' if entry.strongest_attack else 'an image'}"
    figure = (
        f"After every attack the model is right on {right} of {images} images; the main figure "
        f"says {entry.correct} of {entry.examples}; {won}."
    )
    agrees = (right, images) == (entry.correct, entry.examples)
    return Judgement("pass" if agrees else "fail", figure)


def judge_valid_images(evidence: Evidence) -> Judgement:
    """No attack left its ball, and no loss is NaN."""
    results = evidence.results
    sizes = results["linf" if evidence.config.norm == "inf" else "l2"].to_numpy()
    radii = results["epsilon"].to_numpy() / PIXEL_LEVELS
    losses = results["loss"].to_numpy()
    outside = int(np.sum(~(sizes <= radii + _TOLERANCE)))
    broken = int(np.sum(~np.isfinite(losses)))
    figure = (
        f"Of {results.num_rows} results, {outside} have an image beyond its radius and {broken} a "
        "loss that is not a number."
    )
    return Judgement("fail" if outside or broken else "pass", figure)


def judge_uncertainty(evidence: Evidence) -> Judgement:
    """There are enough images for the headline to mean something."""
    entry = evidence.metrics.worst(evidence.subject)
    if entry is None:
        return not_run("No attack was run on the model.")
    half_width = 0.5 * (entry.accuracy_high - entry.accuracy_low)
    status = "pass" if half_width <= NARROW else "warn" if half_width <= WIDE else "fail"
    return Judgement(
        status,
        f"With {entry.examples} images the worst-case accuracy is known to within plus or minus "
        f"{100 * half_width:.1f} percentage points (95% Wilson interval).",
    )


def judge_recorded(evidence: Evidence) -> Judgement:
    """Another person can run the same again."""
    missing = [name for name in _RECORDED if name not in evidence.packages]
    missing += ["the seed"] if evidence.seed is None else []
    if missing:
        return Judgement("fail", f"Not recorded: {', '.join(missing)}.")
    versions = ", ".join(f"{name} {evidence.packages[name]}" for name in _RECORDED)
    return Judgement("pass", f"Recorded: all settings, the seed {evidence.seed}, {versions}.")


def judge_broken_baselines(evidence: Evidence) -> Judgement:
    """Defences that were broken before are called so, and are attacked as the model is."""
    names = [entry.defence for entry in evidence.metrics.clean]
    broken = {name: by for name in names if name != evidence.subject and (by := broken_by(name))}
    if not broken:
        return Judgement("pass", "No defence in the comparison is known to be broken.")
    attacked = {
        entry.defence
        for entry in evidence.metrics.under_attack
        if entry.threat_model == "white_box"
    }
    spared = [name for name in broken if name not in attacked]
    marked = "; ".join(f"{name} by {by}" for name, by in broken.items())
    figure = f"Known to be broken: {marked}."
    if spared:
        return Judgement("warn", f"{figure} Not attacked in the white box: {', '.join(spared)}.")
    return Judgement("pass", figure)
