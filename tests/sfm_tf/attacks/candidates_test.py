import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.candidates import (
    Evaluation,
    better,
    evaluate,
    make_candidate,
    worst_candidate,
)


def _candidate(value, objectives, fooled, iteration):
    images = tf.fill((len(objectives), 1, 2, 1), value)
    evaluation = Evaluation(tf.constant(objectives), tf.constant(fooled))
    return make_candidate(images, evaluation, tf.constant(iteration))


@pytest.mark.parametrize(
    ("targeted", "objectives", "fooled"),
    [(False, [2.0, 4.0], [1.0, 0.5]), (True, [-2.0, -4.0], [0.0, 0.5])],
)
def test_several_looks_at_an_image_count_by_their_mean(targeted, objectives, fooled):
    losses = tf.constant([1.0, 3.0, 3.0, 5.0])
    logits = tf.constant([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0], [1.0, 0.0]])
    labels = tf.constant([0, 0, 1, 1], tf.int64)
    evaluation = evaluate(losses, logits, labels, targeted, looks=2)
    assert evaluation.objective.numpy().tolist() == objectives
    assert evaluation.fooled.numpy().tolist() == fooled


def test_fooling_comes_before_the_objective_and_ties_go_to_the_first():
    first = _candidate(0.1, [1.0, 1.0, 1.0, 1.0, 9.0], [0.0, 1.0, 0.5, 0.5, 0.25], 3)
    second = _candidate(0.2, [0.5, 2.0, 1.0, 2.0, 1.0], [1.0, 0.0, 0.5, 0.5, 0.75], 4)
    best = better(first, second)
    assert best.iterations.numpy().tolist() == [4, 3, 3, 4, 4]
    assert best.objective.numpy().tolist() == [0.5, 1.0, 1.0, 2.0, 1.0]
    assert best.fooled.numpy().tolist() == [1.0, 1.0, 0.5, 0.5, 0.75]
    np.testing.assert_allclose(best.images[:, 0, 1, 0], [0.2, 0.1, 0.1, 0.2, 0.2], atol=1e-7)


def test_anything_is_better_than_the_worst():
    low = float(np.finfo(np.float32).min)
    best = better(
        worst_candidate(tf.zeros((2, 1, 2, 1))), _candidate(0.5, [low, 0.0], [0.0] * 2, 7)
    )
    assert best.iterations.numpy().tolist() == [7, 7]
    assert (best.images.numpy() == 0.5).all()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
