import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.unfinished import advance_unfinished


def _batch(count):
    return (tf.range(count), tf.reshape(tf.range(2 * count), (count, 2)))


@pytest.mark.parametrize(
    ("finished", "size"), [([], 16), ([1], 16), (range(1, 9), 8), (range(1, 13), 4), (range(15), 2)]
)
def test_only_what_is_unfinished_goes_on_in_the_smallest_bucket(finished, size):
    done = np.isin(np.arange(16), list(finished))
    sizes = []

    def advance(batch, state):
        sizes.append(len(batch[0]))
        return {"steps": state["steps"] + 1, "place": batch[1] + 100}

    state = {"steps": tf.zeros(16, tf.int32), "place": _batch(16)[1]}
    new = advance_unfinished(advance, _batch(16), state, tf.constant(done), 16)
    assert sizes == [size]
    np.testing.assert_array_equal(new["steps"], np.where(done, 0, 1))
    expected = np.arange(32).reshape(16, 2) + np.where(done, 0, 100)[:, None]
    np.testing.assert_array_equal(new["place"], expected)


def test_nothing_runs_once_all_are_finished():
    state = tf.zeros(3)
    new = advance_unfinished(None, _batch(3), state, tf.constant([True] * 3), 4)
    assert new is state


def test_the_buckets_are_those_of_the_batch_size_not_of_the_batch():
    sizes = []

    def advance(batch, state):
        sizes.append(len(batch[0]))
        return state

    advance_unfinished(advance, _batch(5), tf.zeros(5), tf.constant([False] * 5), 64)
    assert sizes == [8]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
