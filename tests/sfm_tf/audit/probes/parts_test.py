import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.audit.probes.parts import (
    DRAWS,
    probe_draws,
    probe_known_breaks,
    probe_parts,
    probe_surrogates,
)
from sfm_tf.audit.probes.probed_models import SwitchedModel, make_ablations
from sfm_tf.audit.probes.probing import Prober
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.draws import RepeatableFreshDraws
from sfm_tf.preprocessors.operation import Operation

SHAPE = (4, 4, 1)
COUNT = 20
CONFIG = EvaluationConfig(epsilons=(100.0,), iterations=5, step_size=30.0)


def _model(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(SHAPE), *layers])


CLASSIFIER = _model(keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False))
MASKER = _model(keras.layers.Conv2D(1, 1, activation="sigmoid"))
SQUEEZE = parse_preprocessor("bit_depth_4")


def _prober(subject, config=CONFIG):
    images = np.random.default_rng(0).uniform(0.3, 0.7, (COUNT, *SHAPE)).astype(np.float32)
    labels = np.asarray(subject(images)).argmax(axis=1)
    samples = check_samples(images, labels, subject.classifier)
    prober = Prober(SwitchedModel(subject), samples, config, 0, lambda *_: None)
    return prober, make_ablations(subject)


def test_a_wide_ball_breaks_every_combination_of_the_parts():
    parts = probe_parts(*_prober(DefendedModel(CLASSIFIER, MASKER, SQUEEZE)))
    assert [(entry.masker, entry.preprocessor) for entry in parts] == [
        (False, False),
        (True, False),
        (False, True),
        (True, True),
    ]
    assert parts[-1].clean.correct == COUNT
    assert [entry.attacked.correct for entry in parts] == [0] * 4


@pytest.mark.parametrize(
    ("masker", "preprocessor", "listed"),
    [
        (None, None, [(False, False)]),
        (MASKER, None, [(False, False), (True, False)]),
        (None, SQUEEZE, [(False, False), (False, True)]),
    ],
    ids=["bare", "masker", "preprocessor"],
)
def test_only_parts_that_are_there_are_listed(masker, preprocessor, listed):
    prober, ablations = _prober(DefendedModel(CLASSIFIER, masker, preprocessor))
    parts = probe_parts(prober, ablations)
    assert [(entry.masker, entry.preprocessor) for entry in parts] == listed
    if preprocessor is None:
        assert probe_surrogates(prober, ablations, "identity") == ()


def test_a_surrogate_without_a_gradient_is_found_out_by_the_others():
    blocking = Operation(lambda images: images, lambda images: 0.0 * images, ())
    blocked = Preprocessor("blocking", "smooth", steps=((blocking, ()),))
    surrogates = probe_surrogates(*_prober(DefendedModel(CLASSIFIER, None, blocked)), "smooth")
    found = {entry.surrogate: (entry.used, entry.correct) for entry in surrogates}
    assert set(found) == {"identity", "smooth", "ignored"}
    assert found["identity"] == found["ignored"] == (False, 0)
    assert found["smooth"][0]
    assert found["smooth"][1] > COUNT // 2


def _found(kernel):
    classifier = _model(keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False))
    classifier.set_weights([kernel])
    config = EvaluationConfig(epsilons=(60.0,), iterations=8, step_size=20.0)
    prober, ablations = _prober(DefendedModel(classifier), config)
    return probe_known_breaks(prober, ablations.whole)


def test_broken_defences_are_broken_and_lost_gradients_noticed():
    kernel = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    # Grey images lie on the boundary.
    found = _found(kernel - kernel.mean(axis=0))
    assert found.bare_clean.correct == COUNT
    assert [entry.correct for entry in (found.bare, found.bit_depth, found.scaled)] == [0, 0, 0]
    assert found.plain_blind_share > 0.3
    assert found.stable_blind_share == 0.0
    assert found.saturated_zero_share > 0.9


def test_logits_that_never_differ_are_left_as_they_are():
    found = _found(np.zeros((16, 2), np.float32))
    assert found.factor == 1.0


def _all_dark_or_all_bright(images, seeds):
    """Throws a coin for each image: it is black or white."""
    coins = tf.map_fn(
        lambda seed: tf.random.stateless_uniform((), seed), seeds, fn_output_signature=tf.float32
    )
    return tf.zeros_like(images) + tf.round(coins)[:, None, None, None]


@pytest.mark.parametrize("count", [3, 40])
def test_each_draw_is_another_one(count):
    classifier = _model(keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False))
    classifier.set_weights([np.array([[-1.0, 1.0]] * 16, np.float32)])
    coin = Operation(_all_dark_or_all_bright, lambda images, seeds: images, (), is_random=True)
    subject = DefendedModel(
        classifier, None, Preprocessor("coin", "smooth", RepeatableFreshDraws(), ((coin, ()),))
    )
    images = np.random.default_rng(0).random((count, *SHAPE), dtype=np.float32)
    samples = check_samples(images, np.ones(count, int), classifier)
    config = EvaluationConfig(epsilons=(1.0,), iterations=1, step_size=1.0, attack_batch_size=7)
    prober = Prober(SwitchedModel(subject), samples, config, 0, lambda *_: None)
    draws = probe_draws(prober, subject, make_ablations(subject).whole)
    for entries in (draws.clean, draws.attacked):
        assert [entry.examples for entry in entries] == [count] * DRAWS
        rights = np.stack([entry.right_images() for entry in entries])
        if count == 40:
            # White is class 1, at even odds in every draw, and draws differ.
            assert 0.3 < rights.mean() < 0.7
            assert len({row.tobytes() for row in rights}) == DRAWS
