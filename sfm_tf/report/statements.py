"""What a reader has to know before any figure, in sentences made from the data."""

from collections.abc import Iterator, Mapping

from sfm_tf.audit.setting_rules import radii_in_words
from sfm_tf.evaluation.metrics import Metrics
from sfm_tf.evaluation.paired_answers import ALL_THREATS, WORST_CASE, Condition
from sfm_tf.evaluation.results import CLEAN
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.threat_models import ThreatModel, default_attacks
from sfm_tf.report.inputs import ReportInputs
from sfm_tf.report.tables import attack_name

THREAT_MODEL_NAMES: Mapping[str, str] = {model.value: model.title for model in ThreatModel}

_BUDGETS: Mapping[str, str] = {
    "inf": "each pixel value, from 0 to 1, may change by at most ε (L∞ norm)",
    "2": "the change of the whole image, with values from 0 to 1, may have an L2 norm of at most ε",
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


def threat_model_name(threat_model: str) -> str:
    """Returns a threat model in words; `all` stands for all of them."""
    return {**THREAT_MODEL_NAMES, ALL_THREATS: "all threat models"}[threat_model]


def condition_name(condition: Condition) -> str:
    """Returns what was done to the images, in words."""
    if condition.attack == CLEAN:
        return "clean"
    radius = "all radii" if condition.epsilon is None else f"{condition.epsilon:g}/255"
    threat_model = threat_model_name(condition.threat_model)
    if condition.attack == WORST_CASE:
        return f"{threat_model}, {radius}"
    return f"{threat_model}, {attack_name(condition.attack)} {radius}"


def sample_sentences(inputs: ReportInputs) -> Iterator[str]:
    """Yields which images were used, and what the intervals mean."""
    counts = inputs.class_counts
    evaluated, available = sum(counts.values()), inputs.statistics["test"]["count"]
    fewest, most = min(counts.values()), max(counts.values())
    balance = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    share = "all" if evaluated == available else "the first"
    yield (
        f"The evaluation used {share} {evaluated:,} of {available:,} test images of "
        f"{inputs.dataset}, {balance} in each of {len(counts):,} classes; all of them count, also "
        "those the model gets wrong without an attack."
    )
    yield (
        "Intervals are 95% Wilson intervals. They cover the choice of test images, not another "
        "training or another seed."
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
    yield (
        f"The goal is any wrong class; {_BUDGETS[config.norm]}, with ε = {radii_in_words(config)}."
    )
    if "pgd" in default_attacks(ThreatModel(threat_model), config.attacks):
        yield (
            f"PGD starts at a random point and takes {config.iterations} steps of "
            f"{config.step_size:g}/255, or of ε / steps where that is larger."
        )
    if ThreatModel(threat_model).access == "decisions":
        yield f"Only the first {config.decision_examples:,} images were attacked."
    if config.robust_accuracy_only:
        yield (
            "Each attack ran only on the images that the attacks before it did not break. Its "
            "accuracy includes theirs."
        )


def precision_statement(
    metrics: Metrics, threat_model: str, config: EvaluationConfig
) -> Iterator[str]:
    """Yields how much of the gradients an attack in 16 bits did not see; nothing in float32.

    Args:
        metrics: Figures of the evaluation; `vanished_gradients` has the shares.
        threat_model: Value of a `ThreatModel`.
        config: Settings the evaluation ran with.
    """
    shares = [e.share for e in metrics.vanished_gradients if e.threat_model == threat_model]
    if shares:
        yield (
            f"The attacks computed in {config.attack_precision}. Up to {max(shares):.1%} of the "
            "gradient entries that are not zero in float32 were zero there. The accuracies are "
            "those of the model in float32."
        )
