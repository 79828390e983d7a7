"""Names that settings choose among, and the unit of perturbation sizes."""

PIXEL_LEVELS = 255.0
"""Perturbation sizes are configured in 1/255, the step of an 8-bit image, as the paper does."""

ANOMALY_KINDS = (
    "empty_class",
    "wrong_shape",
    "label_out_of_range",
    "unreadable_image",
    "truncated_shard",
    "value_range",
    "leakage",
    "label_conflict",
    "count_mismatch",
)
"""What can be wrong with ingested images; see `records.anomalies`."""

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

DEFENCES = (
    "undefended",
    "sfm",
    "feature_squeezing",
    "tvm",
    "quilting",
    "pixel_defend",
    "sensitivity",
    "jpeg",
    "adversarial_training",
    "sfm_adversarial_training",
)
"""Defences that an evaluation can be asked for; see `defences.catalogue`."""
