import math

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from sfm_tf.attacks.compiled_attack import AttackOutcome
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.attack_plan import Use
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.scoring import (
    attack_rows,
    clean_outcome,
    clean_rows,
    score_clean,
    within_radii,
)
from sfm_tf.models.defended_model import DefendedModel

SHAPE = (1, 2, 1)


def _model(kernel=((1.0, 0.0), (0.0, 1.0))):
    """Predicts which of the two pixels is the brighter."""
    dense = keras.layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
    dense.set_weights([np.array(kernel, np.float32)])
    return DefendedModel(model)


MODEL = _model()
SAMPLES = check_samples(
    np.array([[[[0.9], [0.1]]], [[[0.2], [0.8]]], [[[0.6], [0.5]]]], np.float32),
    np.array([0, 1, 1]),
    MODEL.classifier,
)
MOVED = np.array([[[[0.4], [0.6]]], [[[0.2], [0.7]]], [[[0.6], [0.5]]]], np.float32)
OUTCOME = AttackOutcome(
    MOVED,
    np.array([1.0, 2.0, 3.0], np.float32),
    np.array([4, 5, -1], np.int32),
    np.array([False, True, False]),
)


def test_clean_rows_are_those_of_the_model():
    rows = clean_rows("sfm", score_clean(MODEL, SAMPLES, 2), SAMPLES).to_pylist()
    assert [row["prediction"] for row in rows] == [0, 1, 0]
    expected = -log_softmax(SAMPLES.images.reshape(3, 2), axis=1)[range(3), SAMPLES.labels]
    np.testing.assert_allclose([row["loss"] for row in rows], expected, rtol=1e-5)
    assert {(row["attack"], row["threat_model"], row["linf"]) for row in rows} == {
        ("clean", "none", 0.0)
    }


def test_attack_rows_score_the_images_that_the_attack_made():
    model = score_clean(MODEL, SAMPLES, 2)
    use = Use("sfm", "white_box")
    rows = attack_rows(use, "pgd", 8.0, OUTCOME, model, SAMPLES).to_pylist()
    assert [row["prediction"] for row in rows] == [1, 1, 0]
    assert [row["clean_prediction"] for row in rows] == [0, 1, 0]
    assert [row["iterations"] for row in rows] == [4, 5, -1]
    np.testing.assert_allclose([row["linf"] for row in rows], [0.5, 0.1, 0.0], atol=1e-6)
    np.testing.assert_allclose([row["l2"] for row in rows], [math.sqrt(0.5), 0.1, 0], atol=1e-6)
    assert {(row["defence"], row["threat_model"]) for row in rows} == {("sfm", "white_box")}


def test_fewer_images_are_scored_beside_their_own_clean_predictions():
    model = score_clean(MODEL, SAMPLES, 2)
    first = AttackOutcome(*(getattr(OUTCOME, name)[:2] for name in vars(OUTCOME)))
    rows = attack_rows(Use("sfm", "decision_based"), "x", 8.0, first, model, SAMPLES.first(2))
    assert rows["clean_prediction"].to_pylist() == [0, 1]


@pytest.mark.parametrize(("norm", "radius"), [(math.inf, 0.1), (2, 0.1)])
def test_a_perturbation_beyond_a_radius_leaves_the_clean_image_there(norm, radius):
    clean = clean_outcome(SAMPLES.wrap(MODEL, 2), SAMPLES)
    epsilons = (255 * radius, 255 * 0.8)
    outcomes = dict(within_radii(OUTCOME, clean, SAMPLES, epsilons, norm))
    assert list(outcomes) == [math.inf, *epsilons]
    assert outcomes[math.inf] is OUTCOME
    small = outcomes[epsilons[0]]
    np.testing.assert_array_equal(small.images[0], SAMPLES.images[0])
    np.testing.assert_array_equal(small.images[1], MOVED[1])
    assert small.loss[0] == clean.loss[0]
    assert small.loss[1] == 2.0
    assert small.iterations.tolist() == [-1, 5, -1]
    np.testing.assert_array_equal(outcomes[epsilons[1]].images, MOVED)


def test_a_model_without_finite_logits_is_refused():
    with pytest.raises(SfmError, match="expected finite logits"):
        score_clean(_model([[np.nan, 0.0], [0.0, 1.0]]), SAMPLES, 2)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
