"""Tests of adversarial training as a whole, of small models on real digits."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.config import DataConfig, ModelConfig
from sfm_tf.datasets.ingestion import ingest
from sfm_tf.errors import SfmError
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import read_schema
from sfm_tf.training import blueprint
from sfm_tf.training.adversarial_training import train_on_adversarial_images
from sfm_tf.training.inner_attack import adversarial_images
from sfm_tf.training.loading import load_adversarial_models
from sfm_tf.training.phases import Phase
from sfm_tf.training.plan import Epoch
from sfm_tf.training.workplace import Workplace
from sfm_tf.training_config import TrainingConfig

_EPSILON = 0.15
_CONFIG = TrainingConfig(
    batch_size=32,
    pretraining_epochs=2,
    epochs=4,
    source_epochs=1,
    alternation="epoch",
    augmentation="none",
    mixed_precision="float32",
    adversarial_training="pgd",
    adversarial_epochs=4,
    adversarial_epsilon=_EPSILON * 255,
    adversarial_step_size=0.25 * _EPSILON * 255,
    adversarial_iterations=5,
)


def _classifier(name, input_shape, class_count, width, mean, variance, seed):
    inputs = keras.Input(input_shape)
    initializer = keras.initializers.HeNormal(seed=seed)
    convolution = keras.layers.Conv2D(8, 3, activation="relu", kernel_initializer=initializer)
    features = keras.layers.Flatten()(convolution(inputs))
    dense = keras.layers.Dense(class_count, kernel_initializer=initializer, dtype="float32")
    return keras.Model(inputs, dense(features))


def _masker(input_shape, width, depth, seed, mask_bias):
    inputs = keras.Input(input_shape)
    initializer = keras.initializers.GlorotUniform(seed=seed)
    convolution = keras.layers.Conv2D(1, 3, padding="same", kernel_initializer=initializer)
    mask = keras.layers.Activation("sigmoid", dtype="float32")
    return keras.Model(inputs, mask(convolution(inputs)))


@pytest.fixture(scope="module", autouse=True)
def small():
    """Replaces the models, whose graphs take seconds to trace, by ones of few layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blueprint, "build_classifier", _classifier)
        patch.setattr(blueprint, "build_masker", _masker)
        yield


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """600 real digits to train on, some of them for validation, and 200 to test on."""
    folder = tmp_path_factory.mktemp("records")
    config = DataConfig(shards=1, max_train_examples=600, max_test_examples=200)
    ingest(config, 0, folder, lambda split, count: None)
    return folder


def _train(records, folder, progress=lambda *_: None, **changes):
    config = dataclasses.replace(_CONFIG, **changes)
    return train_on_adversarial_images(records, ModelConfig(), config, 7, folder, progress)


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    """The folder, the result and the progress reports of an uninterrupted training."""
    folder, reports = tmp_path_factory.mktemp("trained") / "train", []
    result = _train(records, folder, lambda *report: reports.append(report))
    return folder, result, reports


def test_leaves_models_description_history_timing_checkpoints_and_logs(trained):
    names = {path.name for path in trained[0].iterdir()}
    assert names == {
        "adversarial_classifier.keras",
        "adversarial_sfm_classifier.keras",
        "adversarial_sfm_masker.keras",
        "defence.json",
        "history.json",
        "timing.json",
        "checkpoint",
        "logs",
    }
    description = json.loads((trained[0] / "defence.json").read_text())
    assert description["preprocessor"] == "bit_depth_4"
    assert description["adversarial_training"] == {
        "method": "pgd",
        "epsilon": pytest.approx(_EPSILON),
        "step_size": pytest.approx(0.25 * _EPSILON),
        "iterations": 5,
        "beta": 6.0,
        "epochs": 4,
    }


def test_history_follows_the_plans_and_has_the_adversarial_accuracy(trained):
    folder, result, _ = trained
    history = json.loads((folder / "history.json").read_text())
    assert history == result.history
    stages = {name: [epoch["stage"] for epoch in epochs] for name, epochs in history.items()}
    assert stages == {
        "adversarial_training": ["pretraining"] * 2 + ["adversarial"] * 4,
        "sfm_adversarial_training": ["pretraining"] * 2 + ["adversarial_alternation"] * 4,
    }
    for epochs in history.values():
        assert all("adversarial_accuracy" in epoch["validation"] for epoch in epochs)
        assert all("seconds" not in epoch for epoch in epochs)


def test_timing_has_the_seconds_of_what_each_model_trained(trained):
    timing = json.loads((trained[0] / "timing.json").read_text())
    assert {name: set(seconds) for name, seconds in timing.items()} == {
        "adversarial_training": {"classifier_seconds"},
        "sfm_adversarial_training": {"classifier_seconds", "masker_seconds"},
    }


def _test_images(records):
    images, labels = load_split(records, "test", read_schema(records))
    return tf.constant(images), labels


def _robust_accuracy(model, images, labels):
    def measure(attacked):
        return keras.losses.sparse_categorical_crossentropy(
            labels, model(attacked), from_logits=True
        )

    attacked = adversarial_images(images, measure, _EPSILON, 0.02, 20, tf.constant([1, 2]))
    return np.mean(model(attacked).numpy().argmax(1) == labels)


@pytest.fixture(scope="module")
def ordinary(records, tmp_path_factory):
    """The classifier of the same initial weights, trained as usual for as many epochs."""
    folder = tmp_path_factory.mktemp("ordinary")
    workplace = Workplace.open(records, ModelConfig(), _CONFIG, 7, folder, lambda *_: None)
    seeds = workplace.blueprint.seeds
    plan = (Epoch("ordinary", (Phase.CLASSIFIER,)),) * 6
    return workplace.train("ordinary", workplace.blueprint.bare, plan, seeds.order)[0]


def test_adversarial_training_is_more_robust_than_ordinary_training(records, trained, ordinary):
    images, labels = _test_images(records)
    models = load_adversarial_models(trained[0])
    accuracy = {name: _robust_accuracy(model, images, labels) for name, model in models.items()}
    accuracy["ordinary"] = _robust_accuracy(ordinary, images, labels)
    assert accuracy["adversarial_training"] > accuracy["ordinary"] + 0.1
    assert accuracy["sfm_adversarial_training"] > accuracy["ordinary"] + 0.1


def test_reported_accuracy_is_that_of_the_loaded_models(records, trained):
    images, labels = load_split(records, "validation", read_schema(records))
    for name, model in load_adversarial_models(trained[0]).items():
        accuracy = np.mean(model(images).numpy().argmax(1) == labels)
        reported = trained[1].history[name][-1]["validation"]
        assert reported["defended_accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert reported["adversarial_accuracy"] < reported["defended_accuracy"]


def test_training_goes_on_from_a_checkpoint_to_where_an_uninterrupted_one_ends(
    records, trained, tmp_path
):
    folder, _, reports = trained
    shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint")
    (tmp_path / "checkpoint/sfm_adversarial_training/epoch_00006.npz").unlink()
    steps = []
    _train(records, tmp_path, lambda *report: steps.append(report[:2]))
    assert {stage for stage, _ in steps} == {"adversarial_alternation"}
    assert steps == [report[:2] for report in reports[-len(steps) :]]
    assert len(steps) == steps[-1][1] / 4
    images, _ = _test_images(records)
    whole, resumed = (load_adversarial_models(each) for each in (folder, tmp_path))
    for name in whole:
        np.testing.assert_allclose(whole[name](images), resumed[name](images), atol=1e-4)


def test_trades_trains_as_well_and_a_mask_that_collapses_is_reported(records, tmp_path):
    result = _train(
        records,
        tmp_path,
        adversarial_training="trades",
        pretraining_epochs=0,
        adversarial_epochs=1,
        alternation="step",
        sparsity_weight=10.0,
        semantic_weight=0.0,
        masker_learning_rate=1.0,
    )
    (epoch,) = result.history["sfm_adversarial_training"]
    assert {"classification_loss", "mask_loss"} <= set(epoch["training"])
    description = json.loads((tmp_path / "defence.json").read_text())
    assert description["adversarial_training"]["method"] == "trades"
    assert result.warning.startswith("The mask collapsed to zeros")


def test_training_without_a_method_is_refused(records, tmp_path):
    with pytest.raises(SfmError, match="Unknown adversarial training 'none'; expected one of pgd"):
        _train(records, tmp_path / "new", adversarial_training="none")
    assert not (tmp_path / "new").exists()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
