import pytest

from sfm_tf.training.phases import TRAINING_METRICS, Phase


def test_both_measures_what_either_phase_does():
    either = {*TRAINING_METRICS[Phase.CLASSIFIER], *TRAINING_METRICS[Phase.MASKER]}
    assert set(TRAINING_METRICS[Phase.BOTH]) == either
    assert set(TRAINING_METRICS) == set(Phase)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
