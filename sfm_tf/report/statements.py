"""What a reader has to know before any figure, in sentences made from the data."""

from collections.abc import Iterator, Mapping
from typing import Any

from sfm_tf.audit.blessing import BLESSED_FILE, NOT_BLESSED_FILE
from sfm_tf.evaluation.paired_answers import ALL_THREATS
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.threat_models import ThreatModel, default_attacks
from sfm_tf.report.report_inputs import Audit, ReportInputs
from sfm_tf.report.tables import accuracy_cell, find_entry

THREAT_MODEL_NAMES: Mapping[str, str] = {model.value: model.title for model in ThreatModel}

_BUDGETS: Mapping[str, str] = {
    "inf": "each value of an image, from 0 to 1, may change by at most ε (L∞ norm)",
    "2": "the change of an image, of values from 0 to 1, may have an L2 norm of at most ε",
}

_ALWAYS_SHOWN = ("black_box", "gray_box", "white_box")
"""Those of the paper (Yu et al. 2022, section 6.1): where one was not run, the report says so."""


def shown_threat_models(config: EvaluationConfig) -> dict[str, str]:
    """Returns the threat models of a report with their names in words: the paper's and those run.

    Args:
        config: Settings the evaluation ran with.
    """
    shown = {*_ALWAYS_SHOWN, *config.threat_models}
    return {value: name for value, name in THREAT_MODEL_NAMES.items() if value in shown}


def verdict(inputs: ReportInputs) -> str:
    """Returns the first line of a report: blessed or not, believed or not, and attacked how.

    That is `BLESSED` or `NOT_BLESSED`, how far the audit believes the figures, and where the white
    box is missing, that it is.
    """
    name = BLESSED_FILE if inputs.blessing.blessed else NOT_BLESSED_FILE
    believed = f"{name} ({_audit_words(inputs.audit)})"
    subject, white_box = inputs.metrics["subject"], ThreatModel.WHITE_BOX.value
    if find_entry(inputs.metrics["worst_case"], defence=subject, threat_model=white_box):
        return believed
    return (
        f"{believed}: the white box was not run, so nothing here shows that the defence holds "
        "against an attacker who knows it"
    )


def _audit_words(audit: Audit | None) -> str:
    if audit is None:
        return "not audited"
    return f"audit: {audit.verdict.level.replace('_', ' ')}"


def summary(inputs: ReportInputs) -> Iterator[str]:
    """Yields on what and how it was measured, and the two accuracies that matter most."""
    yield _sample(inputs)
    subject = inputs.metrics["subject"]
    clean = find_entry(inputs.metrics["clean"], defence=subject)
    if clean is not None:
        cell = accuracy_cell(clean)
        yield (
            f"Without an attack the model is right on {clean['correct']:,} of "
            f"{clean['examples']:,} images: {cell}."
        )
    worst = find_entry(
        inputs.metrics["worst_case"], defence=subject, threat_model=ALL_THREATS, epsilon=None
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
        threat_model: Value of a `ThreatModel`.
        config: Settings the evaluation ran with.
    """
    yield ThreatModel(threat_model).attacker_knows
    if threat_model not in config.threat_models:
        yield f"The {THREAT_MODEL_NAMES[threat_model]} was not run."
        return
    radii = ", ".join(f"{epsilon:g}" for epsilon in config.epsilons)
    yield f"The goal is any wrong class; {_BUDGETS[config.norm]}, for ε of {radii} in 1/255."
    if "pgd" in default_attacks(ThreatModel(threat_model), config.attacks):
        yield (
            f"PGD takes {config.iterations} steps of {config.step_size:g}/255, or of "
            "ε / steps where that is longer, from a random start."
        )
    if ThreatModel(threat_model).access == "decisions":
        yield f"Only the first {config.decision_examples:,} images were attacked."
    if config.robust_accuracy_only:
        yield (
            "Each attack was run only on the images that those before it left, so its accuracy "
            "counts theirs."
        )


def precision_statement(
    metrics: Mapping[str, Any], threat_model: str, config: EvaluationConfig
) -> Iterator[str]:
    """Yields how much of the gradients an attack in 16 bits did not see; nothing in float32.

    Args:
        metrics: Figures of the evaluation; `vanished_gradients` has the shares.
        threat_model: Value of a `ThreatModel`.
        config: Settings the evaluation ran with.
    """
    shares = [
        entry["share"]
        for entry in metrics["vanished_gradients"]
        if entry["threat_model"] == threat_model
    ]
    if shares:
        yield (
            f"The attacked model computed in {config.attack_precision}; of the entries of its "
            f"gradients that float32 shows, up to {max(shares):.1%} were zero there. Scores are of "
            "the model in float32."
        )
