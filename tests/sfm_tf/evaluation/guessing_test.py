import re

import keras
import numpy as np
import pytest

from sfm_tf.evaluation.guessing import guessing_doubt
from sfm_tf.evaluation.samples import Samples

LABELS = np.arange(60) % 2
VALUES = np.where(LABELS == 1, 0.8, 0.2)[:, None, None, None]
SAMPLES = Samples(VALUES.astype(np.float32), LABELS.astype(np.int64), 2)


def _brighter_than(threshold):
    """Returns a classifier that tells bright pixels from dark ones."""
    layers = [keras.Input((1, 1, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.set_weights([np.array([[0.0, 1.0]]), np.array([0.0, -threshold])])
    return model


@pytest.mark.parametrize(
    ("threshold", "doubts"),
    [
        pytest.param(0.5, [], id="right"),
        pytest.param(
            127.5, ["on 30 of", "on 50%", r"in \[0, 255\] .+ on 60: .+Rescaling\(255\)"], id="bytes"
        ),
        pytest.param(
            0.0, [r"in \[-1, 1\] .+ on 60: .+Rescaling\(2, offset=-1\)"], id="around_zero"
        ),
        pytest.param(
            1000.0,
            ["another range", "other classes than dark, bright in this order", "not trained"],
            id="unknown",
        ),
    ],
)
def test_a_model_at_chance_is_told_with_what_mends_it(threshold, doubts):
    found = guessing_doubt(_brighter_than(threshold), SAMPLES, ("dark", "bright"))
    assert bool(found) == bool(doubts)
    for doubt in doubts:
        assert re.search(doubt, found)


def test_chance_is_the_commonest_class():
    samples = Samples(SAMPLES.images, (LABELS * (np.arange(60) < 20)).astype(np.int64), 2)
    always_dark = guessing_doubt(_brighter_than(1000.0), samples, ("dark", "bright"))
    assert "is on 83%" in always_dark
