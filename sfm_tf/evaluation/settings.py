"""Settings of the stage `evaluate`."""

import dataclasses

from sfm_tf.defences.catalogue import DEFENCES
from sfm_tf.evaluation.attack_catalogue import CONFIGURABLE_ATTACKS
from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.settings import PIXEL_LEVELS, Settings, setting

AUDIT_LEVELS = ("not_credible", "incomplete", "credible")
"""How far the audit believes an evaluation, the least first; see `audit.verdict`."""

DRAWS = ("keyed", "fresh")
"""How random defences draw; see `preprocessors.draws`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Settings):
    """Which attacks `pipelines.evaluate` runs, and the thresholds of the blessing."""

    num_examples: int = setting(
        1000, "Number of test images, counted from the first one; 0 for all.", minimum=0
    )
    model: str = setting(
        "",
        "Your own classifier to evaluate instead of the trained models: a .keras or .h5 file or "
        "a SavedModel. It takes float32 images in [0, 1] and returns logits.",
        is_place=True,
    )
    source_model: str = setting(
        "",
        "Source model of the black-box attacks, such a file or SavedModel; empty for the one that "
        "`pipelines.train` trained.",
        is_place=True,
    )
    defences: tuple[str, ...] = setting(
        ("undefended", "sfm"),
        f"Defences to evaluate: {', '.join(DEFENCES)}; chains of these and of pre-processing "
        "joined by '+', such as jpeg+median_2; or all.",
    )
    draws: str = setting(
        "keyed",
        "How random defences draw, also where they are served: keyed, by a hash of the image with "
        "a key, so that answers are repeatable and attackers face the same function; or fresh, "
        "anew at each request, so that attackers face other draws.",
        choices=DRAWS,
    )
    attack_batch_size: int = setting(128, "Images attacked at a time.", minimum=1)
    attacks: tuple[str, ...] = setting(
        ("fgsm", "pgd"),
        "Attacks of the black, gray and white box and of undefended. The other threat models have "
        "fixed attacks.",
        choices=CONFIGURABLE_ATTACKS,
    )
    threat_models: tuple[str, ...] = setting(
        ("black_box", "gray_box", "white_box"),
        "What the attacker knows.",
        choices=tuple(threat_model.value for threat_model in ThreatModel),
    )
    norm: str = setting("inf", "Norm that bounds a perturbation.", choices=("inf", "2"))
    epsilons: tuple[float, ...] = setting(
        (8.0, 16.0),
        "Perturbation radii in 1/255, also for the L2 norm: there 127.5 stands for a norm of 0.5.",
        minimum=1e-6,
        maximum=PIXEL_LEVELS,
    )
    iterations: int = setting(
        30, "Iterations of PGD, MIM, diverse inputs and the adaptive attacks.", minimum=1
    )
    step_size: float = setting(
        1.0,
        "Step size of PGD, MIM, diverse inputs and the adaptive attacks, in 1/255.",
        minimum=1e-6,
        maximum=PIXEL_LEVELS,
    )
    restarts: int = setting(1, "Random starts of PGD.", minimum=1)
    gradient_samples: int = setting(
        1, "Gradients to average at each step (EOT), against --draws=fresh.", minimum=1
    )
    cw_searches: int = setting(
        5, "Values of the constant c that CW tries for each image.", minimum=1
    )
    cw_iterations: int = setting(20, "Iterations of CW for each value of c.", minimum=1)
    # Carlini and Wagner's 0.01 is for thousands of iterations; in twenty it gets nowhere near.
    cw_learning_rate: float = setting(0.03, "Learning rate of CW's Adam.", minimum=1e-6)
    cw_initial_constant: float = setting(0.1, "First value of the constant c of CW.", minimum=1e-9)
    apgd_iterations: int = setting(
        100, "Iterations of APGD and FAB, also within AutoAttack.", minimum=1
    )
    redraws: int = setting(
        30,
        "Times that tiny noise makes a model draw or round anew, where it does either.",
        minimum=1,
    )
    square_queries: int = setting(5000, "Queries of Square per image.", minimum=1)
    decision_examples: int = setting(
        20, "Images that the decision-based attack is run on.", minimum=1
    )
    robust_accuracy_only: bool = setting(
        False,
        "Skip the images that an earlier attack broke already. This is faster and gives the same "
        "worst case, but the accuracy of an attack then includes the attacks before it.",
    )
    attack_precision: str = setting(
        "float32",
        "Precision of the model that is attacked at a given radius; scores are in float32.",
        choices=("float32", "bfloat16", "float16"),
    )
    audit_examples: int = setting(
        100,
        "Number of test images, counted from the first one, on which the audit checks the strength "
        "of the attacks; 0 leaves out all but the cheapest measurements.",
        minimum=0,
    )
    required_audit: str = setting(
        "incomplete",
        "Lowest verdict of the audit that allows BLESSED.",
        choices=AUDIT_LEVELS,
    )
    min_clean_accuracy: float = setting(
        0.5, "Smallest clean accuracy of the defended model for BLESSED.", minimum=0.0, maximum=1.0
    )
    max_clean_drop: float = setting(
        0.1, "Largest loss of clean accuracy by the defence for BLESSED.", minimum=0.0, maximum=1.0
    )
    min_worst_case_accuracy: float = setting(
        0.1,
        "Smallest accuracy under the worst attack per image for BLESSED.",
        minimum=0.0,
        maximum=1.0,
    )
