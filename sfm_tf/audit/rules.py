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
        "A claim cannot be tested unless the attacker's goal, budget and knowledge are stated.",
        _SEVERE,
        True,
    ),
    Rule(
        "same_samples",
        "All figures use the same images",
        setting_rules.judge_same_samples,
        "Figures cannot be compared if they are of different images, or of images chosen as right.",
        _SEVERE,
        True,
    ),
    Rule(
        "clean_accuracy",
        "Clean accuracy is shown with and without the defence",
        setting_rules.judge_clean_accuracy,
        "If a model is often wrong without an attack, an attack has little to break.",
        _SEVERE,
        True,
    ),
    Rule(
        "white_box",
        "A white-box attack was run",
        setting_rules.judge_white_box,
        "A defence that works only while nobody knows it does not protect.",
        _SEVERE,
        True,
    ),
    Rule(
        "adaptive",
        "Attacks were adapted to each part of the defence",
        setting_rules.judge_adaptive,
        "Most broken defences had withstood attacks that did not aim at them.",
        _TRAMER,
        True,
    ),
    Rule(
        "valid_images",
        "Every adversarial image is within the radius",
        setting_rules.judge_valid_images,
        "An image outside the radius says nothing about the claimed robustness.",
        _PINTOR,
        True,
    ),
    Rule(
        "worst_case",
        "The main figure is the worst case per image",
        setting_rules.judge_worst_case,
        "Each image counts with its own strongest attack; the best single attack breaks fewer.",
        _SPECIAL,
        True,
    ),
    Rule(
        "iteration",
        "Many steps break more than one step",
        strength_rules.judge_iteration,
        "If one step breaks more, the gradient misleads the attack: it is masked.",
        _SEVERE,
        True,
    ),
    Rule(
        "growth",
        "A larger radius breaks more",
        strength_rules.judge_growth,
        "The larger ball contains the smaller one, so an attack that breaks less in it has failed.",
        _SEVERE,
        True,
    ),
    Rule(
        "huge_radius",
        "At an unlimited radius only guessing is left",
        strength_rules.judge_huge_radius,
        "There every image can become grey. If the model is still right, the attack does not work.",
        _SEVERE,
        True,
    ),
    Rule(
        "white_box_strongest",
        "Attackers who know less break less",
        strength_rules.judge_white_box_strongest,
        "The white box could make the same images. If others break more, its attack is too weak.",
        _SEVERE,
        True,
    ),
    Rule(
        "gradient_free",
        "Attacks without a gradient break less",
        strength_rules.judge_gradient_free,
        "If only they break an image, the gradient is masked and the model is not robust.",
        _PITFALLS,
        True,
    ),
    Rule(
        "noise",
        "Random noise breaks less",
        strength_rules.judge_noise,
        "An attack that breaks less than random noise does not work.",
        _SPECIAL,
        True,
    ),
    Rule(
        "gradients",
        "Gradients reach the image",
        health_rules.judge_gradients,
        "A gradient that is zero or not a number stops this attack, but not an attacker.",
        _PINTOR,
        True,
    ),
    Rule(
        "loss",
        "The loss rises along the attack",
        health_rules.judge_loss,
        "If the steps do not raise the loss, the attack does not work.",
        _PINTOR,
        True,
    ),
    Rule(
        "surrogates",
        "The best surrogate gradient was used",
        health_rules.judge_surrogates,
        "Robustness against one surrogate gradient often disappears with another.",
        _ATHALYE,
        True,
    ),
    Rule(
        "known_breaks",
        "The attack breaks defences that are known to be broken",
        health_rules.judge_known_breaks,
        "An attack that fails on a broken defence says nothing about other defences.",
        _SPECIAL,
        True,
    ),
    Rule(
        "recorded",
        "Settings, seeds and versions are recorded",
        setting_rules.judge_recorded,
        "A result that cannot be repeated cannot be checked.",
        _SEVERE,
        True,
    ),
    Rule(
        "convergence",
        "More steps and starts change little",
        health_rules.judge_convergence,
        "An attack that stops too early misses images that it would have broken.",
        _PITFALLS,
        False,
    ),
    Rule(
        "step_size",
        "Another step size changes little",
        health_rules.judge_step_size,
        "Robustness against one step size is a property of the attack, not of the model.",
        _PITFALLS,
        False,
    ),
    Rule(
        "parts",
        "Each part was attacked separately",
        health_rules.judge_parts,
        "A part deserves credit only for the difference that it makes.",
        _SPECIAL,
        False,
    ),
    Rule(
        "diversity",
        "AutoAttack, score- and decision-based attacks were run",
        strength_rules.judge_diversity,
        "Attacks of one kind can all fail for the same reason.",
        _CROCE,
        False,
    ),
    Rule(
        "transfer",
        "Images made for other models were tried",
        strength_rules.judge_transfer,
        "If transferred images succeed where the white box fails, the gradient is masked.",
        _PITFALLS,
        False,
    ),
    Rule(
        "goals",
        "Targeted attacks and both norms were tried",
        strength_rules.judge_goals,
        "Reaching a given class is harder than leaving one. If it is easier, something is wrong.",
        _SPECIAL,
        False,
    ),
    Rule(
        "draws",
        "A random defence was measured repeatedly",
        health_rules.judge_draws,
        "One draw can be lucky.",
        _PITFALLS,
        False,
    ),
    Rule(
        "gaussian_noise",
        "Robustness to Gaussian noise is shown",
        strength_rules.judge_gaussian_noise,
        "A model that random noise breaks is not robust.",
        _PITFALLS,
        False,
    ),
    Rule(
        "uncertainty",
        "There are enough images",
        setting_rules.judge_uncertainty,
        "A difference that is smaller than the interval means nothing.",
        "Wilson 1927, Probable inference",
        False,
    ),
    Rule(
        "broken_baselines",
        "Broken defences are named as broken",
        setting_rules.judge_broken_baselines,
        "Being better than a broken defence proves nothing.",
        _PITFALLS,
        False,
    ),
)
"""Every check; those that must pass come first."""


def audit(evidence: Evidence) -> tuple[Finding, ...]:
    """Returns what every rule finds, in the order of `RULES`."""
    return tuple(find(rule, evidence) for rule in RULES)
