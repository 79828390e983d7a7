import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.step_pacing import Pace, adapt, checkpoint_windows, initial_pace

NO_CHECKPOINT = -1


def _pace(step_size=0.4, rises=0.0, best_objective=0.0, halved=False):
    values = (step_size, rises, best_objective)
    return Pace(*(tf.constant([value]) for value in values), tf.constant([halved]))


def _adapt(pace, rose, best_objective, window, rho=0.75):
    pace, halves = adapt(
        pace, tf.constant([rose]), tf.constant([best_objective]), window, tf.constant(rho)
    )
    return Pace(*(tensor.numpy().item() for tensor in pace)), halves.numpy().item()


@pytest.mark.parametrize(
    ("iterations", "checkpoints"),
    [
        # Croce and Hein 2020: 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of the iterations.
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
        (1000, [220, 410, 570, 700, 800, 870, 930, 990]),
        (10, [3, 5, 6, 7, 8, 9, 10]),
        (1, [1]),
    ],
)
def test_checkpoints_are_those_of_the_paper(iterations, checkpoints):
    windows = checkpoint_windows(iterations)
    assert windows.shape == (iterations + 1,)
    assert windows[0] == 0
    assert np.flatnonzero(windows > 0).tolist() == checkpoints
    assert windows[checkpoints].tolist() == np.diff([0, *checkpoints]).tolist()
    assert (np.delete(windows, [0, *checkpoints]) == NO_CHECKPOINT).all()


def test_between_checkpoints_only_rises_are_counted():
    assert _adapt(_pace(rises=3.0), True, 9.0, NO_CHECKPOINT) == (
        (pytest.approx(0.4), 4.0, 0.0, False),
        False,
    )
    assert _adapt(_pace(rises=3.0), False, 9.0, NO_CHECKPOINT)[0].rises == 3.0


@pytest.mark.parametrize(("rises", "halves"), [(14.0, True), (15.0, False)])
def test_a_step_is_halved_where_the_loss_rose_too_rarely(rises, halves):
    """0.75 of 20 steps is 15; the step counted now was no rise."""
    pace, halved = _adapt(_pace(rises=rises), False, 9.0, 20)
    assert halved == halves
    assert pace.step_size == pytest.approx(0.2 if halves else 0.4)
    assert (pace.rises, pace.best_objective, pace.halved) == (0.0, 9.0, halves)


@pytest.mark.parametrize(
    ("halved_before", "best", "halves"),
    [(False, 5.0, True), (True, 5.0, False), (False, 5.5, False)],
)
def test_a_step_is_halved_where_nothing_changed_since_the_last_checkpoint(
    halved_before, best, halves
):
    pace = _pace(rises=20.0, best_objective=5.0, halved=halved_before)
    assert _adapt(pace, True, best, 20)[1] == halves


def test_the_start_is_a_checkpoint_that_halves_nothing():
    pace, halves = adapt(
        initial_pace(tf.constant(0.4), tf.constant([2])),
        tf.constant([False, False]),
        tf.constant([-3.0, 2.0]),
        tf.constant(0),
        tf.constant(0.75),
    )
    assert not halves.numpy().any()
    np.testing.assert_allclose(pace.step_size, [0.4, 0.4])
    assert pace.best_objective.numpy().tolist() == [-3.0, 2.0]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
