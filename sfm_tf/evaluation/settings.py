"""Settings of the stage `evaluate`."""

import dataclasses

from sfm_tf.defences.settings import DEFENCES
from sfm_tf.settings import PIXEL_LEVELS, Settings, setting

ATTACKS = (
    "noise",
    "fgsm",
    "pgd",
    "mim",
    "diverse",
    "cw",
    "apgd_ce",
    "apgd_dlr",
    "fab_t",
    "apgd_t",
    "square",
    "autoattack",
    "autoattack_rand",
)
"""Attacks that an evaluation can be asked for; see `attacks.catalogue`."""

THREAT_MODELS = (
    "black_box",
    "gray_box",
    "white_box",
    "adaptive",
    "undefended",
    "score_based",
    "decision_based",
)
"""What an attacker may know; see `attacks.threat_models`."""

AUDIT_LEVELS = ("not_credible", "incomplete", "credible")
"""How far the audit believes an evaluation, the least first; see `audit.verdict`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Settings):
    """Which attacks `pipelines.evaluate` runs, and what it asks of a model to bless it."""

    num_examples: int = setting(
        1000, "Test images evaluated, the first ones of the split; 0 for all.", minimum=0
    )
    model: str = setting(
        "",
        "Classifier of your own, a .keras file or a SavedModel that returns logits, to evaluate in "
        "place of the trained models.",
    )
    source_model: str = setting(
        "",
        "Classifier that black-box attacks start from, a .keras file or a SavedModel; empty for "
        "the source model that was trained.",
    )
    defences: tuple[str, ...] = setting(
        ("undefended", "sfm"),
        f"Defences that are evaluated: {', '.join(DEFENCES)}; chains of them and of "
        "pre-processing joined by '+', such as jpeg+median_2; or all.",
    )
    attack_batch_size: int = setting(128, "Images attacked at a time.", minimum=1)
    attacks: tuple[str, ...] = setting(
        ("fgsm", "pgd"),
        "Attacks of the black, gray and white box and of undefended; the other threat models have "
        "attacks of their own.",
        choices=ATTACKS,
    )
    threat_models: tuple[str, ...] = setting(
        ("black_box", "gray_box", "white_box"), "What the attacker knows.", choices=THREAT_MODELS
    )
    norm: str = setting("inf", "Norm that bounds a perturbation.", choices=("inf", "2"))
    epsilons: tuple[float, ...] = setting(
        (8.0, 16.0),
        "Radii of the ball, in 1/255; so is that of L2, where 127.5 is a norm of 0.5.",
        minimum=1e-6,
        maximum=PIXEL_LEVELS,
    )
    iterations: int = setting(30, "Iterations of PGD, MIM, Diverse and adaptive.", minimum=1)
    step_size: float = setting(
        1.0,
        "Step of PGD, MIM, Diverse and adaptive, in 1/255.",
        minimum=1e-6,
        maximum=PIXEL_LEVELS,
    )
    restarts: int = setting(1, "Random starts of PGD.", minimum=1)
    gradient_samples: int = setting(
        1, "Looks that a gradient is the mean of, for a random defence (EOT).", minimum=1
    )
    cw_searches: int = setting(5, "Values of c that CW tries for each image.", minimum=1)
    cw_iterations: int = setting(20, "Iterations of CW for each c.", minimum=1)
    # Carlini and Wagner's 0.01 is for thousands of iterations; in twenty it gets nowhere near.
    cw_learning_rate: float = setting(0.03, "Step of CW's Adam.", minimum=1e-6)
    cw_initial_constant: float = setting(0.1, "First value of CW's c.", minimum=1e-9)
    apgd_iterations: int = setting(100, "Iterations of APGD and FAB, AutoAttack's too.", minimum=1)
    square_queries: int = setting(5000, "Queries of Square per image.", minimum=1)
    decision_examples: int = setting(
        20, "Images that the decision-based attacker spends its queries on.", minimum=1
    )
    robust_accuracy_only: bool = setting(
        False,
        "Leave alone the images that an attack has fooled the scored model with: faster, with the "
        "same worst case, but each attack's accuracy then counts those before it.",
    )
    attack_precision: str = setting(
        "float32",
        "Arithmetic of the model that attacks at a radius see; all else is in float32.",
        choices=("float32", "bfloat16", "float16"),
    )
    audit_examples: int = setting(
        100,
        "Test images, the first ones, on which the audit asks whether the attacks were as strong "
        "as they could be; 0 leaves its own measurements out.",
        minimum=0,
    )
    required_audit: str = setting(
        "incomplete",
        "What the audit has to find the evaluation at least, for BLESSED.",
        choices=AUDIT_LEVELS,
    )
    min_clean_accuracy: float = setting(
        0.5, "Clean accuracy of the defended model needed for BLESSED.", minimum=0.0, maximum=1.0
    )
    max_clean_drop: float = setting(
        0.1, "Clean accuracy the defence may cost, for BLESSED.", minimum=0.0, maximum=1.0
    )
    min_worst_case_accuracy: float = setting(
        0.1,
        "Accuracy under the worst attack per image needed for BLESSED.",
        minimum=0.0,
        maximum=1.0,
    )
