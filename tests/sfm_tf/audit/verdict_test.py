import pytest

from sfm_tf.audit.finding import Finding
from sfm_tf.audit.verdict import RULE_TEXT, verdict


def _finding(status, is_must, title="It"):
    return Finding("rule", title, status, "1 of 2.", "Because.", "Someone", is_must)


GOOD = (_finding("pass", True), _finding("pass", False))


@pytest.mark.parametrize(
    ("findings", "level"),
    [
        ((), "credible"),
        ((_finding("warn", False),), "credible"),
        ((_finding("not_run", False),), "credible"),
        ((_finding("fail", False),), "incomplete"),
        ((_finding("warn", True),), "incomplete"),
        ((_finding("not_run", True),), "incomplete"),
        ((_finding("fail", True),), "not_credible"),
        ((_finding("fail", True), _finding("not_run", True)), "not_credible"),
    ],
)
def test_the_worst_finding_that_counts_decides(findings, level):
    found = verdict([*GOOD, *findings])
    assert (found.level, found.rule_text) == (level, RULE_TEXT)


def test_the_sentence_names_what_decided():
    failed, warned = _finding("fail", True, "Gradients reach"), _finding("warn", True, "Noise")
    assert verdict([*GOOD, failed, warned]).sentence == (
        "1 of 3 checks that must pass failed: Gradients reach (failed)."
    )
    assert verdict([*GOOD, warned]).sentence == "1 of 3 checks leave a doubt: Noise (warning)."
    assert verdict(GOOD).sentence == "All 1 checks that must pass did."


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
