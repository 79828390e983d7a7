import numpy as np
import pytest

from sfm_tf.audit.grades import broken_beyond, grade, worst


@pytest.mark.parametrize(
    ("count", "examples", "status"),
    [
        (0, 100, "pass"),
        (-3, 100, "pass"),
        (2, 100, "pass"),
        (3, 100, "warn"),
        (5, 100, "warn"),
        (5.5, 100, "fail"),
        (1, 12, "pass"),
        (2, 12, "warn"),
        (3, 12, "fail"),
        (20, 1000, "pass"),
        (51, 1000, "fail"),
    ],
)
def test_few_images_pass_and_many_fail(count, examples, status):
    assert grade(count, examples) == status


def test_a_rule_can_ask_for_other_shares():
    assert grade(10, 100, 0.1, 0.2) == "pass"
    assert grade(20, 100, 0.1, 0.2) == "warn"
    assert grade(21, 100, 0.1, 0.2) == "fail"


def test_the_worst_status_counts():
    assert worst(["pass", "fail", "warn"]) == "fail"
    assert worst(["pass", "not_run"]) == "not_run"
    assert worst([]) == "pass"


def test_only_what_the_stronger_attack_leaves_counts():
    stronger = np.array([True, True, False, False])
    weaker = np.array([True, False, True, False])
    assert broken_beyond(stronger, weaker) == 1


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
