import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.probes.answers import right_images
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.repeated_draws import DRAWS, probe_draws
from sfm_tf.evaluation.probes.setups import make_variants
from sfm_tf.evaluation.probes.switched_model import SwitchedModel
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import Preprocessor
from sfm_tf.preprocessors.operation import Operation

SHAPE = (2, 2, 1)
CONFIG = EvaluationConfig(epsilons=(1.0,), iterations=1, step_size=1.0, attack_batch_size=7)


def _all_dark_or_all_bright(images, seeds):
    """Throws a coin for each image: it is black or white."""
    coins = tf.map_fn(
        lambda seed: tf.random.stateless_uniform((), seed), seeds, fn_output_signature=tf.float32
    )
    return tf.zeros_like(images) + tf.round(coins)[:, None, None, None]


@pytest.mark.parametrize("count", [3, 40])
def test_each_draw_is_another_one(count):
    dense = keras.layers.Dense(2, use_bias=False)
    classifier = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
    dense.set_weights([np.array([[-1.0, 1.0]] * 4, np.float32)])
    coin = Operation(_all_dark_or_all_bright, lambda images, seeds: images, (), is_random=True)
    subject = DefendedModel(classifier, None, Preprocessor("coin", "smooth", steps=((coin, ()),)))
    images = np.random.default_rng(0).random((count, *SHAPE), dtype=np.float32)
    samples = check_samples(images, np.ones(count, int), classifier)
    bench = Bench(SwitchedModel(subject), samples, CONFIG, 0, lambda *_: None)
    draws = probe_draws(bench, subject, make_variants(subject).whole)
    for name in ("clean", "attacked"):
        assert [entry["examples"] for entry in draws[name]] == [count] * DRAWS
        rights = np.stack([right_images(entry) for entry in draws[name]])
        if count == 40:
            # White is class 1, at even odds in every draw, and draws differ.
            assert 0.3 < rights.mean() < 0.7
            assert len({row.tobytes() for row in rights}) == DRAWS


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
