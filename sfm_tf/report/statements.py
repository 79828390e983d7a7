"""What a reader has to know before any figure, in sentences made from the data."""

from collections.abc import Iterator, Mapping

from sfm_tf.attacks.threat_models import ThreatModel
from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.blessing import BLESSED_FILE, NOT_BLESSED_FILE
from sfm_tf.evaluation.metrics import ALL_THREATS
from sfm_tf.evaluation.results import DEFENDED
from sfm_tf.report.report_inputs import ReportInputs
from sfm_tf.report.tables import accuracy_cell, find_entry

THREAT_MODEL_NAMES: Mapping[str, str] = {
    ThreatModel.BLACK_BOX.value: "black box",
    ThreatModel.GRAY_BOX.value: "gray box",
    ThreatModel.WHITE_BOX.value: "white box",
}

KNOWLEDGE: Mapping[str, str] = {
    ThreatModel.BLACK_BOX.value: (
        "The attacker knows the task but neither classifier, masker nor pre-processing: the "
        "adversarial images are made on an independently trained network and transferred."
    ),
    ThreatModel.GRAY_BOX.value: (
        "The attacker knows the weights of classifier and masker, but not that a pre-processing "
        "follows the masker. Robustness against such an attacker alone is no evidence of security."
    ),
    ThreatModel.WHITE_BOX.value: (
        "The attacker knows everything, the pre-processing included, and attacks all of it end to "
        "end, with a surrogate for the gradients that the pre-processing does not have (BPDA)."
    ),
}
"""What the attacker of each threat model knows (Yu et al. 2022, section 6.1)."""


def verdict(inputs: ReportInputs) -> str:
    """Returns `BLESSED` or `NOT_BLESSED`, and says so where the white box is missing."""
    name = BLESSED_FILE if inputs.blessing.blessed else NOT_BLESSED_FILE
    if find_entry(inputs.metrics["worst_case"], threat_model=ThreatModel.WHITE_BOX.value):
        return name
    return (
        f"{name}: the white box was not run, so nothing here shows that the defence holds "
        "against an attacker who knows it"
    )


def summary(inputs: ReportInputs) -> Iterator[str]:
    """Yields on what and how it was measured, and the two accuracies that matter most."""
    yield _sample(inputs)
    clean = find_entry(inputs.metrics["clean"], defence=DEFENDED)
    if clean is not None:
        cell = accuracy_cell(clean)
        yield (
            f"Without an attack the defended model is right on {clean['correct']:,} of "
            f"{clean['examples']:,} images: {cell}."
        )
    worst = find_entry(
        inputs.metrics["worst_case"], defence=DEFENDED, threat_model=ALL_THREATS, epsilon=None
    )
    if worst is not None:
        cell = accuracy_cell(worst)
        yield (
            f"After every attack of every threat model that was run it is still right on "
            f"{worst['correct']:,} of {worst['examples']:,}: {cell}."
        )
    yield (
        "Intervals are 95% Wilson intervals. They cover the choice of test images, not another "
        "training or another seed."
    )


def _sample(inputs: ReportInputs) -> str:
    counts = inputs.class_counts
    evaluated, available = sum(counts.values()), inputs.statistics["test"]["count"]
    fewest, most = min(counts.values()), max(counts.values())
    balance = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    share = "all" if evaluated == available else "the first"
    return (
        f"Measured on {share} {evaluated:,} of {available:,} test images of {inputs.dataset}, "
        f"{balance} in each of {len(counts):,} classes; none was left out for being wrong."
    )


def threat_model_statement(threat_model: str, config: EvaluationConfig) -> Iterator[str]:
    """Yields what the attacker knows, wants and may do, or that it was not run.

    Args:
        threat_model: `black_box`, `gray_box` or `white_box`.
        config: Settings the evaluation ran with.
    """
    yield KNOWLEDGE[threat_model]
    if threat_model not in config.threat_models:
        yield f"The {THREAT_MODEL_NAMES[threat_model]} was not run."
        return
    radii = ", ".join(f"{epsilon:g}" for epsilon in config.epsilons)
    yield (
        "The goal is any wrong class; each value of an image, from 0 to 1, may change by at most "
        f"ε (L∞ norm), for ε of {radii} in 1/255. PGD takes {config.iterations} steps of "
        f"{config.step_size:g}/255 from a random start."
    )
