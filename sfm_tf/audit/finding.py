"""What a rule of the audit is, and what it finds."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

from sfm_tf.audit.evidence import Evidence

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
