"""The audit: all rules in one table, and what they find."""

from sfm_tf.audit import health_rules, setting_rules, strength_rules
from sfm_tf.audit.evidence import Evidence
from sfm_tf.audit.finding import Finding, Rule, find

_CARLINI = "Carlini et al. 2019, On evaluating adversarial robustness"
_SEVERE, _PITFALLS, _SPECIAL = (f"{_CARLINI}, {section}" for section in ("3.1", "3.2", "3.3"))
_ATHALYE = "Athalye et al. 2018, Obfuscated gradients give a false sense of security"
_TRAMER = "Tramèr et al. 2020, On adaptive attacks to adversarial example defenses"
_PINTOR = "Pintor et al. 2022, Indicators of attack failure"
_CROCE = "Croce and Hein 2020, Reliable evaluation of adversarial robustness"

RULES: tuple[Rule, ...] = (
    Rule(
        "threat_model",
        "The threat model is stated",
        setting_rules.judge_threat_model,
        "A claim without goal, budget and knowledge of the attacker cannot be refuted.",
        _SEVERE,
        True,
    ),
    Rule(
        "same_samples",
        "All figures are of the same images",
        setting_rules.judge_same_samples,
        "Figures of other images, or of those chosen for being right, do not compare.",
        _SEVERE,
        True,
    ),
    Rule(
        "clean_accuracy",
        "Clean accuracy with and without the defence",
        setting_rules.judge_clean_accuracy,
        "A model that is often wrong leaves an attack little to break.",
        _SEVERE,
        True,
    ),
    Rule(
        "white_box",
        "A white-box attack was run",
        setting_rules.judge_white_box,
        "A defence that holds only as long as nobody knows it does not hold.",
        _SEVERE,
        True,
    ),
    Rule(
        "adaptive",
        "Attacks were adapted to each part of the defence",
        setting_rules.judge_adaptive,
        "Most defences that fell had stood up to attacks that did not aim at them.",
        _TRAMER,
        True,
    ),
    Rule(
        "valid_images",
        "Every adversarial image is in its ball",
        setting_rules.judge_valid_images,
        "An image outside the budget breaks no model that was claimed to be robust.",
        _PINTOR,
        True,
    ),
    Rule(
        "worst_case",
        "The headline is the worst case per image",
        setting_rules.judge_worst_case,
        "The smallest of several averages is larger than the average of the smallest.",
        _SPECIAL,
        True,
    ),
    Rule(
        "iteration",
        "Many steps beat a single one",
        strength_rules.judge_iteration,
        "Where one step is better the gradient leads astray: it is masked.",
        _SEVERE,
        True,
    ),
    Rule(
        "growth",
        "A larger ball breaks more",
        strength_rules.judge_growth,
        "It contains the smaller one, so an attack that breaks less in it has failed.",
        _SEVERE,
        True,
    ),
    Rule(
        "huge_radius",
        "A ball without limits leaves only guessing",
        strength_rules.judge_huge_radius,
        "Every image can become grey there, so a model that is still right was not attacked.",
        _SEVERE,
        True,
    ),
    Rule(
        "white_box_strongest",
        "Who knows less breaks less",
        strength_rules.judge_white_box_strongest,
        "The white box could have made the same images, so its attack was not at its best.",
        _SEVERE,
        True,
    ),
    Rule(
        "gradient_free",
        "Attacks without a gradient break less",
        strength_rules.judge_gradient_free,
        "What only they break has a gradient that is hidden, not a model that is robust.",
        _PITFALLS,
        True,
    ),
    Rule(
        "noise",
        "Random noise breaks least",
        strength_rules.judge_noise,
        "An attack that loses to chance follows nothing.",
        _SPECIAL,
        True,
    ),
    Rule(
        "gradients",
        "Gradients reach the image",
        health_rules.judge_gradients,
        "A gradient that is zero or not a number stops an attack, not an attacker.",
        _PINTOR,
        True,
    ),
    Rule(
        "loss",
        "The loss rises along the attack",
        health_rules.judge_loss,
        "Steps that do not raise the loss are no attack.",
        _PINTOR,
        True,
    ),
    Rule(
        "surrogates",
        "The best surrogate gradient was used",
        health_rules.judge_surrogates,
        "Robustness against one stand-in for a gradient is often gone with another.",
        _ATHALYE,
        True,
    ),
    Rule(
        "known_breaks",
        "The attack breaks what is known to be broken",
        health_rules.judge_known_breaks,
        "An attack that fails on a broken defence says nothing about another one.",
        _SPECIAL,
        True,
    ),
    Rule(
        "recorded",
        "Settings, seeds and versions are recorded",
        setting_rules.judge_recorded,
        "What cannot be run again cannot be checked.",
        _SEVERE,
        True,
    ),
    Rule(
        "convergence",
        "More steps and starts change little",
        health_rules.judge_convergence,
        "An attack that was stopped early reports what it had no time to break.",
        _PITFALLS,
        False,
    ),
    Rule(
        "step_size",
        "Another step size changes little",
        health_rules.judge_step_size,
        "Robustness against one step size is a property of the attack.",
        _PITFALLS,
        False,
    ),
    Rule(
        "parts",
        "Each part was attacked by itself",
        health_rules.judge_parts,
        "Only the difference that a part makes is to its credit.",
        _SPECIAL,
        False,
    ),
    Rule(
        "diversity",
        "AutoAttack, score- and decision-based attacks were run",
        strength_rules.judge_diversity,
        "Attacks of one kind fail for one reason.",
        _CROCE,
        False,
    ),
    Rule(
        "transfer",
        "Images of other models were tried",
        strength_rules.judge_transfer,
        "A transfer that succeeds where the white box fails shows a masked gradient.",
        _PITFALLS,
        False,
    ),
    Rule(
        "goals",
        "Targeted attacks and both norms were tried",
        strength_rules.judge_goals,
        "Reaching one class is harder than leaving one, so an attack that finds it easier is odd.",
        _SPECIAL,
        False,
    ),
    Rule(
        "draws",
        "A random defence was asked repeatedly",
        health_rules.judge_draws,
        "One draw can be a lucky one.",
        _PITFALLS,
        False,
    ),
    Rule(
        "gaussian_noise",
        "Robustness to Gaussian noise is shown",
        strength_rules.judge_gaussian_noise,
        "A model that chance can break needs no attacker.",
        _PITFALLS,
        False,
    ),
    Rule(
        "uncertainty",
        "There are enough images",
        setting_rules.judge_uncertainty,
        "A difference within the interval is none.",
        "Wilson 1927, Probable inference",
        False,
    ),
    Rule(
        "broken_baselines",
        "Broken defences are called so",
        setting_rules.judge_broken_baselines,
        "To be better than a defence that was broken is no merit.",
        _PITFALLS,
        False,
    ),
)
"""Every check, those first whose failure takes the evaluation its credibility."""


def audit(evidence: Evidence) -> tuple[Finding, ...]:
    """Returns what every rule finds, in the order of `RULES`."""
    return tuple(find(rule, evidence) for rule in RULES)
