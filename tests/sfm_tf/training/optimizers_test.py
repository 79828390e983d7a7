"""Tests of the optimizers against closed forms."""

import math

import keras
import numpy as np
import pytest

from sfm_tf.training.optimizers import classifier_optimizer, masker_optimizer
from sfm_tf.training_config import TrainingConfig


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (5, 0.2 / 2),
        (10, 0.2),
        (105, 0.2 * 0.5),
        (200, 0.0),
        (60, 0.2 * (1 + math.cos(math.pi * 50 / 190)) / 2),
    ],
)
def test_classifier_warms_up_and_decays_like_a_cosine(step, expected):
    optimizer = classifier_optimizer(TrainingConfig(classifier_learning_rate=0.2), 200)
    optimizer.build([keras.Variable(np.zeros(1))])
    optimizer.iterations.assign(step)
    assert float(optimizer.learning_rate) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
def test_shortest_trainings_have_a_schedule(steps):
    optimizer = classifier_optimizer(TrainingConfig(), steps)
    variable = keras.Variable(np.zeros(1))
    for _ in range(steps + 1):
        optimizer.apply([np.ones(1, np.float32)], [variable])
    assert np.isfinite(variable.numpy()).all()


def test_classifier_has_nesterov_momentum():
    optimizer = classifier_optimizer(TrainingConfig(), 100)
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, True)


def test_masker_clips_the_norm_of_all_gradients_together():
    # Adam's first moment after one step is a tenth of the gradient it was given.
    optimizer = masker_optimizer(TrainingConfig(masker_learning_rate=0.01))
    variables = [keras.Variable(np.zeros(1)), keras.Variable(np.zeros(1))]
    optimizer.apply([np.array([30.0]), np.array([40.0])], variables)
    moments = [v.numpy()[0] for v in optimizer.variables if v.path.endswith("momentum")]
    np.testing.assert_allclose(moments, [0.06, 0.08], rtol=1e-5)
    np.testing.assert_allclose([v.numpy()[0] for v in variables], [-0.01, -0.01], rtol=1e-4)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
