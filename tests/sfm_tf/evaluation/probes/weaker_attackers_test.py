import keras
import numpy as np
import pytest

from sfm_tf.attacks.validity import perturbation_sizes
from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.setups import make_variants
from sfm_tf.evaluation.probes.switched_model import SwitchedModel
from sfm_tf.evaluation.probes.weaker_attackers import (
    SQUARE_EXAMPLES,
    _with_gaussian_noise,
    probe_noise,
    probe_square,
    probe_transfer,
)
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.models.defended_model import DefendedModel

SHAPE = (4, 4, 1)
COUNT = 60
CONFIG = EvaluationConfig(
    epsilons=(16.0,), iterations=4, step_size=6.0, attack_batch_size=32, square_queries=30
)


def _kernel(seed):
    """Weights that add up to nothing, so that grey images lie on the boundary."""
    kernel = np.random.default_rng(seed).normal(size=(16, 2)).astype(np.float32)
    return kernel - kernel.mean(axis=0)


def _linear(seed):
    dense = keras.layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
    dense.set_weights([_kernel(seed)])
    return model


CLASSIFIER, SOURCE = _linear(0), _linear(1)
MASKER = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(1, 1, activation="sigmoid")])


def _bench_and_variants(masker=None):
    subject = DefendedModel(CLASSIFIER, masker)
    images = np.random.default_rng(2).uniform(0.3, 0.7, (COUNT, *SHAPE)).astype(np.float32)
    labels = np.asarray(subject(images)).argmax(axis=1)
    samples = check_samples(images, labels, CLASSIFIER)
    bench = Bench(SwitchedModel(subject), samples, CONFIG, 0, lambda *_: None)
    return bench, subject, make_variants(subject)


def test_noise_is_weaker_than_pgd_and_repeatable():
    bench, _, variants = _bench_and_variants()
    noise = probe_noise(bench, variants.whole)
    attacked = bench.right_under_pgd(variants.whole)
    for name in ("uniform", "gaussian"):
        assert noise[name]["correct"] > attacked.sum()
    again, _, other = _bench_and_variants()
    assert probe_noise(again, other.whole) == noise


def test_gaussian_noise_has_the_norm_of_the_attack():
    bench, _, variants = _bench_and_variants()
    images, attacked = bench.samples.images, bench.pgd(variants.whole.attacked).images
    noisy = _with_gaussian_noise(images, attacked, 0)
    np.testing.assert_allclose(
        perturbation_sizes(images, noisy, 2.0),
        perturbation_sizes(images, attacked, 2.0),
        rtol=0.05,  # A few values are clipped.
    )
    assert noisy.dtype == np.float32
    assert 0.0 <= noisy.min() <= noisy.max() <= 1.0


def test_square_is_run_where_gradients_failed():
    bench, _, variants = _bench_and_variants()
    left = np.ones(COUNT, bool)
    left[:3] = False
    square = probe_square(bench, variants.whole, left)
    assert (square["queries"], square["survivors"]) == (30, COUNT - 3)
    assert square["examples"] == SQUARE_EXAMPLES
    assert square["correct"] < SQUARE_EXAMPLES


def test_square_has_nothing_to_do_where_nothing_is_left():
    bench, _, variants = _bench_and_variants()
    square = probe_square(bench, variants.whole, np.zeros(COUNT, bool))
    assert (square["survivors"], square["examples"], square["right"]) == (0, 0, "")


def test_images_are_transferred_from_the_source_and_from_the_bare_classifier():
    bench, subject, variants = _bench_and_variants(MASKER)
    transfers = probe_transfer(bench, variants, SOURCE)
    assert [entry["source"] for entry in transfers] == ["independent", "bare"]
    for entry, model in zip(transfers, (SOURCE, variants.bare.attacked), strict=True):
        predictions = np.asarray(subject(bench.pgd(model).images)).argmax(axis=1)
        assert entry["correct"] == (predictions == bench.samples.labels).sum()


def test_a_bare_classifier_without_a_source_has_nothing_to_transfer_from():
    bench, _, variants = _bench_and_variants()
    assert probe_transfer(bench, variants, None) == []


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
