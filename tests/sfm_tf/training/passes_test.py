"""Tests of the loop on one device; `devices_test` has those on several."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.batches import evaluation_batches, training_batches
from sfm_tf.training.passes import Passes
from sfm_tf.training.phases import Phase
from sfm_tf.training.sparse_feature_masker_trainer import SparseFeatureMaskerTrainer

_IMAGES = np.random.default_rng(0).uniform(size=(20, 2, 2, 1)).astype(np.float32)
_LABELS = np.arange(20) % 3


def _trainer():
    inputs = keras.Input((2, 2, 1))
    dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    trainer = SparseFeatureMaskerTrainer(
        DefendedModel(keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))),
        sparsity_weight=0.1,
        semantic_weight=1.0,
        reconstruction_weight=1.0,
        loss_reduction="per_image",
        weight_decay=0.01,
    )
    trainer.compile(keras.optimizers.SGD(0.5))
    return trainer


def _batches(shares=None):
    options = {"batch_size": 6, "augmentation": "none", "seed": 0, "epoch": 0}
    return training_batches(_IMAGES, _LABELS, shares=shares, **options)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_takes_the_steps_that_fit_takes(jit_compile):
    trainer, fitted = _trainer(), _trainer()
    passes = Passes(trainer, tf.distribute.get_strategy(), jit_compile=jit_compile)
    measured = list(passes.train(_batches))
    history = fitted.fit(_batches(), verbose=0, shuffle=False).history
    assert len(measured) == 3
    for pair in zip(trainer.get_weights(), fitted.get_weights(), strict=True):
        np.testing.assert_allclose(*pair, atol=1e-6)
    mean = history["classification_loss"][0]
    assert float(measured[-1]["classification_loss"]) == pytest.approx(mean, rel=1e-6)
    assert passes.means()["classification_loss"] == pytest.approx(mean, rel=1e-6)


def test_evaluation_gives_means_over_all_images_whatever_was_measured_before():
    trainer = _trainer()
    passes = Passes(trainer, tf.distribute.get_strategy())
    list(passes.train(_batches))
    batches = evaluation_batches(_IMAGES, _LABELS, 7)
    expected = trainer.evaluate(batches, return_dict=True, verbose=0)
    for _ in range(2):
        assert passes.evaluate(batches) == pytest.approx({k: float(v) for k, v in expected.items()})


def test_reset_begins_the_means_anew():
    trainer = _trainer()
    passes = Passes(trainer, tf.distribute.get_strategy())
    trainer.trackers["accuracy"].update_state([1.0])
    passes.reset()
    trainer.trackers["accuracy"].update_state([0.0])
    assert passes.means()["accuracy"] == 0.0


def test_steps_are_compiled_once_for_each_phase():
    trainer, calls = _trainer(), []
    passes = Passes(trainer, tf.distribute.get_strategy())
    step = trainer.train_step
    trainer.train_step = lambda data: calls.append(trainer.phase) or step(data)
    for phase in (Phase.CLASSIFIER, Phase.BOTH, Phase.CLASSIFIER, Phase.BOTH):
        trainer.phase = phase
        list(passes.train(_batches))
    assert calls == [Phase.CLASSIFIER, Phase.BOTH]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
