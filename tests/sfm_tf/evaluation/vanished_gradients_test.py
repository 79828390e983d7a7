import keras
import numpy as np
import pytest

from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.vanished_gradients import vanished_share

SHAPE = (1, 4, 1)


def _linear(kernel):
    dense = keras.layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
    dense.set_weights([np.array(kernel, np.float32)])
    return model


SEEN = _linear([[1, 0], [1, 0], [0, 0], [1, 0]])
SAMPLES = check_samples(
    np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32), np.zeros(5, int), SEEN
)


@pytest.mark.parametrize(
    ("kernel", "share"),
    [
        ([[1, 0], [1, 0], [0, 0], [1, 0]], 0.0),
        ([[1, 0], [0, 0], [0, 0], [1, 0]], 1 / 3),
        ([[0, 0], [0, 0], [1, 0], [0, 0]], 1.0),
    ],
)
def test_only_entries_that_float32_shows_can_vanish(kernel, share):
    exact, rounded = SAMPLES.wrap(SEEN, 2), SAMPLES.wrap(_linear(kernel), 2)
    assert vanished_share(exact, rounded, SAMPLES, 2) == pytest.approx(share)


def test_a_model_without_any_gradient_loses_none():
    flat = SAMPLES.wrap(_linear(np.zeros((4, 2))), 2)
    assert vanished_share(flat, flat, SAMPLES, 2) == 0.0


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
