"""What a rule of the audit is, and what it finds."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from sfm_tf.audit.evidence import Evidence
from sfm_tf.evaluation.significance import wilson_interval

Status = Literal["pass", "warn", "fail", "not_run"]
"""How a check came out; `not_run` where nothing was measured that could tell."""


class Judgement(NamedTuple):
    """What a check says of the evidence.

    Attributes:
        status: How it came out.
        figure: One sentence with the numbers.
    """

    status: Status
    figure: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """One check.

    Attributes:
        name: A name for programs.
        title: What has to be, in a few words.
        judge: Looks at the evidence.
        why: One sentence: what a failure would mean.
        source: Who asks for it.
        is_must: Whether a failure takes the evaluation its credibility.
    """

    name: str
    title: str
    judge: Callable[[Evidence], Judgement]
    why: str
    source: str
    is_must: bool


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: Name of the rule.
        title: What has to be, in a few words.
        status: How it came out.
        figure: One sentence with the numbers.
        why: One sentence: what a failure would mean.
        source: Who asks for it.
        is_must: Whether a failure takes the evaluation its credibility.
    """

    rule: str
    title: str
    status: Status
    figure: str
    why: str
    source: str
    is_must: bool


def find(rule: Rule, evidence: Evidence) -> Finding:
    """Returns what a rule finds in the evidence."""
    status, figure = rule.judge(evidence)
    return Finding(rule.name, rule.title, status, figure, rule.why, rule.source, rule.is_must)


FEW = 0.02
"""Share of the images that two attacks of one strength may well differ on: each random start breaks
one or two of a hundred that another one leaves."""

MANY = 0.05
"""Share of the images from which on the weaker of two attacks is not the weaker one: a reported
accuracy would be wrong by more than the 95 % interval of a thousand images, plus or minus 3 %."""

_RANKS: tuple[Status, ...] = ("pass", "not_run", "warn", "fail")


def grade(count: float, examples: int, few: float = FEW, many: float = MANY) -> Status:
    """Returns how much it matters that something holds of `count` images that should of none.

    A warning is never chance: the 95 % Wilson interval of the share lies above `few`. Of 100 images
    that takes five, of 1,000 it takes 29.

    Args:
        count: The images; may be an estimate.
        examples: How many were looked at, at least 1.
        few: Share that passes. A single image always does.
        many: Share above which it fails. Two images never do.
    """
    if count > max(2.0, many * examples):
        return "fail"
    lowest_share, _ = wilson_interval(max(0, round(count)), examples)
    return "warn" if count > 1.0 and lowest_share > few else "pass"


def worst(statuses: Iterable[Status]) -> Status:
    """Returns the worst of some statuses; `pass` where there is none."""
    return max(statuses, key=_RANKS.index, default="pass")


def not_run(reason: str) -> Judgement:
    """Returns that nothing was measured."""
    return Judgement("not_run", reason)
