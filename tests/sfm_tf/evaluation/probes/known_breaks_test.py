import keras
import numpy as np
import pytest

from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.known_breaks import probe_known_breaks
from sfm_tf.evaluation.probes.setups import make_variants
from sfm_tf.evaluation.probes.switched_model import SwitchedModel
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.models.defended_model import DefendedModel

SHAPE = (4, 4, 1)
COUNT = 20
CONFIG = EvaluationConfig(epsilons=(60.0,), iterations=8, step_size=20.0)


def _found(kernel):
    dense = keras.layers.Dense(2, use_bias=False)
    classifier = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
    dense.set_weights([kernel])
    images = np.random.default_rng(1).uniform(0.1, 0.9, (COUNT, *SHAPE)).astype(np.float32)
    labels = np.asarray(classifier(images)).argmax(axis=1)
    subject, samples = DefendedModel(classifier), check_samples(images, labels, classifier)
    bench = Bench(SwitchedModel(subject), samples, CONFIG, 0, lambda *_: None)
    return probe_known_breaks(bench, make_variants(subject).whole)


def test_broken_defences_are_broken_and_lost_gradients_noticed():
    kernel = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    # Grey images lie on the boundary.
    found = _found(kernel - kernel.mean(axis=0))
    assert found["bare_clean"]["correct"] == COUNT
    assert [found[name]["correct"] for name in ("bare", "bit_depth", "scaled")] == [0, 0, 0]
    assert found["plain_blind_share"] > 0.3
    assert found["stable_blind_share"] == 0.0
    assert found["saturated_zero_share"] > 0.9


def test_logits_that_never_differ_are_left_as_they_are():
    found = _found(np.zeros((16, 2), np.float32))
    assert found["factor"] == 1.0


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
