"""Whether a model may be served, as a file that later stages look for."""

import dataclasses
import pathlib

from sfm_tf.artifacts.atomic_files import write_text
from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.metrics import Metrics
from sfm_tf.evaluation.results import UNDEFENDED
from sfm_tf.evaluation.settings import AUDIT_LEVELS, EvaluationConfig
from sfm_tf.evaluation.threat_models import ThreatModel

BLESSED_FILE = "BLESSED"
NOT_BLESSED_FILE = "NOT_BLESSED"

# A difference of two shares of a whole number of images is off by float64's rounding.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Blessing:
    """The verdict of an evaluation.

    Attributes:
        blessed: Whether every check passed.
        reasons: Sentences with figure and threshold: of all checks where blessed, else of those
            that failed.
    """

    blessed: bool
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Check:
    """One figure beside its threshold.

    Attributes:
        name: What was measured.
        measured: The figure in words.
        required: The threshold in words.
        passed: Whether it is met.
        reason: All of this in one sentence.
    """

    name: str
    measured: str
    required: str
    passed: bool
    reason: str


def decide(
    metrics: Metrics, config: EvaluationConfig, believed: AuditVerdict | None = None
) -> Blessing:
    """Compares the figures of the defended model, or of the user's own, with the thresholds.

    A run without the white-box threat model is never blessed: attackers that do not know the
    defence are no evidence that it holds (Carlini et al. 2019).

    Args:
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
        config: The thresholds.
        believed: How far the audit believes the figures; None where they were not audited.
    """
    made = checks(metrics, config, believed)
    failed = [check for check in made if not check.passed]
    return Blessing(not failed, tuple(check.reason for check in failed or made))


def checks(
    metrics: Metrics, config: EvaluationConfig, believed: AuditVerdict | None = None
) -> tuple[Check, ...]:
    """Returns each threshold with the figure it is for; arguments as those of `decide`."""
    subject = metrics.subject
    clean = {entry.defence: entry.accuracy for entry in metrics.clean}
    phrase = "Clean accuracy of the model"
    made = [_at_least("Clean accuracy", phrase, clean[subject], config.min_clean_accuracy)]
    if UNDEFENDED in clean:
        cost = clean[UNDEFENDED] - clean[subject]
        phrase = "Clean accuracy that the defence costs"
        made.append(_at_most("Clean accuracy lost", phrase, cost, config.max_clean_drop))
    made += _worst_case_checks(metrics, config.min_worst_case_accuracy)
    if believed is not None:
        made.append(_audit_check(believed, config.required_audit))
    return tuple(made)


def decision_sentence(metrics: Metrics, blessing: Blessing, verdict: AuditVerdict | None) -> str:
    """Returns the answer of an evaluation in one sentence, for those who read nothing else.

    Args:
        metrics: The figures.
        blessing: What `decide` returned.
        verdict: How far the audit believes the figures; None where they were not audited.
    """
    clean, worst = metrics.clean_accuracy(metrics.subject), metrics.worst(metrics.subject)
    decision = "blessed" if blessing.blessed else "not blessed"
    attacked = (
        "it was not attacked"
        if worst is None
        else f"on {worst.accuracy:.1%} after the worst attack on each image"
    )
    attacked += _without_the_defence(metrics)
    audit = (
        "was not audited"
        if verdict is None
        else f"is {verdict.level.replace('_', ' ')} according to the audit"
    )
    return (
        f"The model is {decision}: it is right on {clean.accuracy:.1%} of {clean.examples:,} "
        f"images without an attack and {attacked}, and this evaluation {audit}."
    )


def _without_the_defence(metrics: Metrics) -> str:
    """Returns what the bare classifier reaches, which is what a defence has to beat."""
    clean, worst = metrics.clean_accuracy(UNDEFENDED), metrics.worst(UNDEFENDED)
    if metrics.subject == UNDEFENDED or clean is None or worst is None:
        return ""
    return f" (without the defence: {clean.accuracy:.1%} and {worst.accuracy:.1%})"


def _worst_case_checks(metrics: Metrics, threshold: float) -> list[Check]:
    worst = metrics.worst(metrics.subject)
    made = []
    if worst is not None:
        phrase = (
            "Accuracy of the model under the worst attack per image, "
            f"{worst.correct} of {worst.examples} images,"
        )
        made.append(_at_least("Worst-case accuracy", phrase, worst.accuracy, threshold))
    has_white_box = metrics.worst(metrics.subject, ThreatModel.WHITE_BOX.value) is not None
    count = "One white-box threat model was" if has_white_box else "No white-box threat model was"
    reason = f"{count} evaluated (at least 1 required)."
    return [
        *made,
        Check("White box", "run" if has_white_box else "not run", "run", has_white_box, reason),
    ]


def _audit_check(believed: AuditVerdict, required: str) -> Check:
    passed = AUDIT_LEVELS.index(believed.level) >= AUDIT_LEVELS.index(required)
    found, relation = believed.level.replace("_", " "), "at least" if passed else "below"
    needed = required.replace("_", " ")
    reason = (
        f"The audit finds the evaluation {found}, {relation} the required {needed}. "
        f"{believed.sentence}"
    )
    return Check("Audit", found, f"≥ {needed}", passed, reason)


def _at_least(name: str, phrase: str, figure: float, threshold: float) -> Check:
    passed = figure >= threshold - _ROUNDING
    relation = "at least" if passed else "below"
    reason = f"{phrase} is {figure:.4f}, {relation} the required {threshold:.4f}."
    return Check(name, f"{figure:.1%}", f"≥ {threshold:.1%}", passed, reason)


def _at_most(name: str, phrase: str, figure: float, threshold: float) -> Check:
    passed = figure <= threshold + _ROUNDING
    relation = "at most" if passed else "above"
    reason = f"{phrase} is {figure:.4f}, {relation} the allowed {threshold:.4f}."
    return Check(name, f"{figure:.1%}", f"≤ {threshold:.1%}", passed, reason)


def write_blessing(folder: pathlib.Path, blessing: Blessing) -> None:
    """Writes the reasons, a line each, to `BLESSED` or to `NOT_BLESSED`; never leaves both.

    The convention of TFX's Evaluator, whose pusher acts on the file's name.

    Args:
        folder: An existing folder.
        blessing: The verdict.
    """
    names = (BLESSED_FILE, NOT_BLESSED_FILE)
    name, other = names if blessing.blessed else names[::-1]
    (folder / other).unlink(missing_ok=True)
    write_text(folder / name, "".join(f"{reason}\n" for reason in blessing.reasons))


def read_blessing(folder: pathlib.Path) -> Blessing:
    """Returns the verdict that `write_blessing` left in `folder`.

    Raises:
        SfmError: If there is none, or both.
    """
    present = [name for name in (BLESSED_FILE, NOT_BLESSED_FILE) if (folder / name).is_file()]
    if len(present) != 1:
        raise SfmError(
            f"{folder} holds {' and '.join(present) or 'neither verdict'}; expected either "
            f"{BLESSED_FILE} or {NOT_BLESSED_FILE}. Run the evaluation again."
        )
    reasons = (folder / present[0]).read_text(encoding="utf-8").splitlines()
    return Blessing(present[0] == BLESSED_FILE, tuple(reasons))
