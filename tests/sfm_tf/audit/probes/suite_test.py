import json
import pathlib

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from sfm_tf.artifacts.typed_json import from_json
from sfm_tf.audit.probes.attack_strength import EFFORTS
from sfm_tf.audit.probes.measurements import ProbedModel, Probes
from sfm_tf.audit.probes.suite import run_probes
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.job import EvaluationJob
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor

SHAPE = (8, 8, 1)
COUNT = 24
CONFIG = EvaluationConfig(epsilons=(16.0, 32.0), iterations=4, step_size=8.0, square_queries=20)


def _trained(seed):
    """A small classifier of digits behind a mask that is not trained."""
    keras.utils.set_random_seed(seed)
    classifier = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, *SHAPE) / 16.0).astype(np.float32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.Adam(0.01), loss)
    classifier.fit(images[COUNT:], labels[COUNT:], batch_size=64, epochs=3, verbose=0)
    samples = check_samples(images[:COUNT], labels[:COUNT], classifier)
    return classifier, samples


def _job(model, source, samples, seed):
    return EvaluationJob(
        models={"sfm": model},
        source=source,
        samples=samples,
        config=CONFIG,
        seed=seed,
        store=AdversarialStore(pathlib.Path("not_written")),
        progress=lambda *_: None,
    )


def _probes(models, **parts):
    classifier, source, samples = models
    return run_probes("sfm", _job(DefendedModel(classifier, **parts), source, samples, 3), False)


@pytest.fixture(scope="module")
def models():
    classifier, samples = _trained(0)
    return classifier, _trained(1)[0], samples


@pytest.fixture(scope="module")
def probes(models):
    masker = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")]
    )
    masker.layers[-1].bias.assign([3.0])  # Nearly transparent.
    return _probes(models, masker=masker, preprocessor=parse_preprocessor("bit_depth_4"))


def test_probes_are_json(probes):
    value = json.loads(json.dumps(probes.to_json(), allow_nan=False))
    assert from_json(Probes, value) == probes
    assert "draws" not in value


def test_all_probes_are_there_and_of_the_same_images(probes):
    assert probes.subject == ProbedModel(
        masker=True,
        preprocessor="bit_depth_4",
        surrogate="identity",
    )
    assert probes.settings.epsilon == 32.0
    entries = [
        *probes.ladder,
        *probes.surrogates,
        *probes.transfer,
        probes.no_radius,
        probes.margin,
        probes.redrawn,
        probes.targeted,
        probes.other_norm,
        probes.noise.uniform,
    ]
    assert {entry.examples for entry in entries} == {COUNT}


def test_probes_that_ask_for_the_same_attack_agree(probes):
    assert probes.no_radius.right == probes.ladder[0].right
    base = probes.convergence.base.right
    assert probes.ladder[3].right == base
    assert next(e.right for e in probes.surrogates if e.used) == base
    assert probes.parts[-1].attacked.right == base
    assert probes.parts[0].attacked.right == probes.known_breaks.bare.right


def test_the_model_is_right_without_and_broken_with_an_attack(probes):
    correct = [entry.correct for entry in probes.ladder]
    assert correct[0] > 0.6 * COUNT
    assert correct == sorted(correct, reverse=True)
    assert correct[-1] == 0


def test_square_is_run_on_what_every_gradient_attack_left(probes):
    convergence = [getattr(probes.convergence, name).right for name in EFFORTS]
    surrogates = [entry.right for entry in probes.surrogates]
    left = sum(set(column) == {"1"} for column in zip(*convergence, *surrogates, strict=True))
    assert probes.square.survivors == probes.square.examples == left


def test_the_same_arguments_give_the_same_figures(models):
    classifier, _, samples = models
    found, again = (
        run_probes("sfm", _job(DefendedModel(classifier), None, samples.first(8), 0), False)
        for _ in range(2)
    )
    assert found == again
    # A bare model needs no source.
    assert found.surrogates == found.transfer == ()
    assert len(found.parts) == 1
