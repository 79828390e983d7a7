import numpy as np
import pytest

from sfm_tf.attacks.compiled_attack import AttackOutcome
from sfm_tf.attacks.worst_images import Verdict, begin_with, keep_worse

COUNT = 5


def _verdict(fooled, objective):
    fooled, objective = (np.array(values, np.float32) for values in (fooled, objective))
    return Verdict(fooled, objective, objective + 10.0)


def _outcome(count, value):
    images = np.full((count, 2, 2, 1), value, np.float32)
    zeros = np.zeros(count, np.float32)
    return AttackOutcome(images, zeros, np.full(count, 7, np.int32), zeros == 0)


def _begun():
    images = np.zeros((COUNT, 2, 2, 1), np.float32)
    verdict = _verdict([0.0, 0.0, 0.0, 0.5, 1.0], [-1.0, -1.0, -1.0, -1.0, 3.0])
    return images, begin_with(images, verdict, "clean")


def test_begins_with_the_images_themselves():
    images, worst = _begun()
    np.testing.assert_array_equal(worst.images, images)
    assert worst.names.tolist() == ["clean"] * COUNT
    assert worst.iterations.tolist() == [0] * COUNT
    assert worst.outcome().loss.tolist() == [9.0, 9.0, 9.0, 9.0, 13.0]
    assert worst.outcome().zero_gradient_share == 0.0


def test_fooling_more_comes_before_the_margin_and_a_tie_changes_nothing():
    images, worst = _begun()
    # Climbs; climbs not; only ties; fools more though it falls; fools less though it climbs.
    verdict = _verdict([0.0, 0.0, 0.0, 1.0, 0.5], [-0.5, -2.0, -1.0, -9.0, 9.0])
    rows = np.arange(COUNT)
    keep_worse(worst, rows, _outcome(COUNT, 1.0), verdict, np.full(COUNT, True), "pgd")
    assert worst.names.tolist() == ["pgd", "clean", "clean", "pgd", "clean"]
    assert worst.images[:, 0, 0, 0].tolist() == [1, 0, 0, 1, 0]
    assert worst.iterations.tolist() == [7, 0, 0, 7, 0]
    assert worst.fooled.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert worst.loss.tolist() == [9.5, 9.0, 9.0, 1.0, 13.0]
    assert images.max() == 0.0


def test_only_allowed_images_of_the_given_rows_count():
    _, worst = _begun()
    rows, is_allowed = np.array([3, 0, 1]), np.array([True, False, True])
    keep_worse(
        worst, rows, _outcome(3, 1.0), _verdict([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]), is_allowed, "cw"
    )
    assert worst.names.tolist() == ["clean", "cw", "clean", "cw", "clean"]
    assert worst.objective.tolist() == [-1.0, 2.0, -1.0, 2.0, 3.0]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
