"""Tests of the whole training stage, on models of few layers."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.datasets.ingestion import ingest
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.errors import SfmError
from sfm_tf.models.settings import ModelConfig
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.training import training
from sfm_tf.training.adversarial_trainer import adversarial_images
from sfm_tf.training.model_files import (
    load_adversarial_models,
    load_defended_model,
    load_source_model,
)
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.trainer import Phase
from sfm_tf.training.training import (
    TrainingSession,
    defence_timing,
    split_seconds,
    train_defence,
    train_on_adversarial_images,
)
from sfm_tf.training.training_loop import CompiledSteps, Epoch
from tests.small_models import small_models

# 84 of the 100 digits are for training: 3 steps to a pass.
_CONFIG = TrainingConfig(
    batch_size=28,
    pretraining_epochs=1,
    epochs=2,
    source_epochs=2,
    sparsity_weight=0.2,
    augmentation="crop",
    mixed_precision="float32",
)


@pytest.fixture(scope="module", autouse=True)
def _small_models():
    with small_models():
        yield


def _open(records, folder, progress=lambda *_: None, seed=7, config=_CONFIG, **changes):
    config = dataclasses.replace(config, **changes)
    return TrainingSession.open(records, ModelConfig(), config, seed, folder, progress)


class _Interruption(Exception):  # noqa: N818
    pass


def _epoch(**seconds):
    return {"stage": "alternation", "training": {}, "validation": {}, "seconds": seconds}


def test_seconds_are_added_up_by_what_was_trained_and_taken_out():
    histories = {
        "defence": [_epoch(classifier=1.5), _epoch(classifier=2.0, masker=4.0), _epoch(masker=1.0)],
        "other": [_epoch(classifier=1.0), _epoch(both=2.5)],
    }
    lasting, seconds = split_seconds(histories)
    assert seconds["defence"] == {"classifier": 3.5, "masker": 5.0}
    assert seconds["other"] == {"classifier": 1.0, "both": 2.5}
    assert lasting["defence"] == [{"stage": "alternation", "training": {}, "validation": {}}] * 3
    assert "seconds" in histories["defence"][0]


@pytest.mark.parametrize(
    ("defence", "expected"),
    [
        ({"classifier": 3.0, "masker": 5.0}, {"classifier_seconds": 3.0, "masker_seconds": 5.0}),
        (
            {"classifier": 3.0, "both": 7.0},
            {"classifier_seconds": 3.0, "masker_seconds": 0.0, "both_seconds": 7.0},
        ),
    ],
)
def test_timing_names_the_parts_of_the_train_stage(defence, expected):
    timing = defence_timing(defence, {"classifier": 2.0})
    assert timing == {**expected, "source_seconds": 2.0}


_SCHEDULE = (Epoch("source", (Phase.CLASSIFIER,)),) * 2


def _train_bare(session):
    factory = session.factory
    return session.train("alone", factory.bare, _SCHEDULE, factory.seeds.order)


def test_opening_reads_the_images_and_makes_the_folder(records, tmp_path):
    session = _open(records.folder, tmp_path / "new")
    assert (tmp_path / "new").is_dir()
    assert (len(session.training.labels), len(session.validation.labels)) == (84, 16)
    assert session.training.images.shape == (84, 8, 8, 1)
    assert (session.settings["seed"], session.settings["batch_size"]) == (7, 28)


def test_model_is_trained_in_16_bits_and_returned_in_32(records, tmp_path):
    session, policies = _open(records.folder, tmp_path, mixed_precision="mixed_bfloat16"), []

    def build():
        policies.append(keras.config.dtype_policy().name)
        return session.factory.bare()

    model, history = session.train("alone", build, _SCHEDULE, 0)
    assert policies == ["mixed_bfloat16", "float32"]
    assert keras.config.dtype_policy().name == "float32"
    assert {layer.compute_dtype for layer in model.classifier.layers} == {"float32"}
    assert [epoch["stage"] for epoch in history] == ["source", "source"]
    untrained = session.factory.bare()
    assert not np.array_equal(model.get_weights()[0], untrained.get_weights()[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "logs"]
    assert (tmp_path / "checkpoint" / "alone").is_dir()


def test_xla_compiles_the_steps_if_asked_and_learns_the_same(records, tmp_path, monkeypatch):
    asked = []

    class Noted(CompiledSteps):
        def __init__(self, *arguments, jit_compile):
            super().__init__(*arguments, jit_compile=jit_compile)
            asked.append(jit_compile)

    monkeypatch.setattr(training, "CompiledSteps", Noted)
    plain, compiled = (
        _train_bare(_open(records.folder, tmp_path / str(xla), jit_compile=xla))[0].get_weights()
        for xla in (False, True)
    )
    assert asked == [False, True]
    for pair in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(*pair, atol=1e-5)


def test_xla_is_refused_for_a_preprocessor_that_draws(records, tmp_path):
    model, config = ModelConfig(preprocessor="total_variation_50_30"), _CONFIG
    config = dataclasses.replace(config, jit_compile=True)
    with pytest.raises(SfmError, match="cannot compile the hash that total_variation_50_30 draws"):
        TrainingSession.open(records.folder, model, config, 7, tmp_path, lambda *_: None)


def test_folder_without_records_is_refused(tmp_path):
    with pytest.raises(SfmError, match=r"No schema.json in"):
        _open(tmp_path, tmp_path / "train")


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    """The folder, the result and the progress reports of an uninterrupted training."""
    folder, reports = tmp_path_factory.mktemp("trained") / "train", []
    session = _open(records.folder, folder, lambda *report: reports.append(report))
    return folder, train_defence(session), reports


def test_leaves_models_their_history_seconds_and_weights(trained):
    folder, result, _ = trained
    assert {path.name for path in folder.iterdir()} == {
        "classifier.keras",
        "masker.keras",
        "source.keras",
        "defence.json",
        "history.json",
        "loss_weights.json",
        "timing.json",
        "checkpoint",
        "logs",
    }
    history = json.loads((folder / "history.json").read_text())
    assert history == result.history
    stages = {name: [epoch["stage"] for epoch in epochs] for name, epochs in history.items()}
    assert stages == {
        "defence": ["pretraining", "alternation", "alternation"],
        "source": ["source", "source"],
    }
    for epochs in history.values():
        assert all(set(epoch) == {"stage", "training", "validation"} for epoch in epochs)
    timing = json.loads((folder / "timing.json").read_text())
    parts = {"classifier_seconds", "masker_seconds", "both_seconds", "source_seconds"}
    assert set(timing) == parts
    assert {name for name in parts if timing[name] > 0.0} == parts - {"masker_seconds"}
    weights = json.loads((folder / "loss_weights.json").read_text())
    assert weights["sparsity_weight"] == 0.2
    assert weights["sparsity_ratio"] == pytest.approx(0.2 * 8)  # 64 values, w3 = 1.


def test_progress_ends_each_stage_at_its_total(trained):
    last = {stage: (done, total) for stage, done, total, _ in trained[2]}
    assert last == {"pretraining": (3, 3), "alternation": (6, 6), "source": (6, 6)}


def _images(records, split="validation"):
    return load_split(records, split, read_schema(records))


def _accuracy(model, images, labels):
    return np.mean(model(tf.constant(images)).numpy().argmax(1) == labels)


def test_loaded_models_have_the_accuracy_that_was_reported(records, trained):
    folder, result, _ = trained
    images, labels = _images(records.folder)
    model, reported = load_defended_model(folder), result.history["defence"][-1]["validation"]
    assert reported["defended_accuracy"] == pytest.approx(_accuracy(model, images, labels))
    assert reported["bare_accuracy"] == pytest.approx(_accuracy(model.classifier, images, labels))
    # It is reported for pre-processed images.
    assert model.mask(images).numpy().mean() == pytest.approx(reported["mask_mean"], abs=0.01)
    source = load_source_model(folder)
    assert np.abs(source(images).numpy() - model.classifier(images).numpy()).max() > 0.01


def test_interrupted_training_ends_where_an_uninterrupted_one_does(records, trained, tmp_path):
    def interrupt(stage, done, *_):
        if (stage, done) == ("source", 4):
            raise _Interruption

    with pytest.raises(_Interruption):
        train_defence(_open(records.folder, tmp_path, interrupt))
    steps = []
    train_defence(_open(records.folder, tmp_path, lambda *report: steps.append(report[:2])))
    assert steps == [("source", 4), ("source", 5), ("source", 6)]
    # What was trained before the interruption counts too.
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert min(timing["classifier_seconds"], timing["both_seconds"]) > 0.0
    with pytest.raises(SfmError, match=r"other settings \(seed, semantic_weight\)"):
        train_defence(_open(records.folder, tmp_path, seed=4, semantic_weight=5.0))
    images, _ = _images(records.folder)
    for load in (load_defended_model, load_source_model):
        whole, resumed = (load(folder)(images) for folder in (trained[0], tmp_path))
        np.testing.assert_allclose(resumed, whole, rtol=1e-5, atol=1e-6)


_COLLAPSING = {"sparsity_weight": 10.0, "semantic_weight": 0.0, "masker_learning_rate": 1.0}


def test_mask_that_collapses_is_reported(records, tmp_path):
    result = train_defence(_open(records.folder, tmp_path, epochs=4, **_COLLAPSING))
    assert result.warning.startswith("The mask collapsed to zeros")


def test_ramp_begins_below_the_weight_at_which_masking_pays(records, tmp_path, monkeypatch):
    schedules = []

    def train(self, name, build, schedule, seed):
        schedules.append(schedule)
        raise _Interruption

    monkeypatch.setattr(TrainingSession, "train", train)
    with pytest.raises(_Interruption):
        train_defence(_open(records.folder, tmp_path, epochs=3, sparsity_ramp_epochs=2))
    # The ratio is 1.6; the ramp begins at 0.5 and is over after two epochs.
    shares = [epoch.sparsity_share for epoch in schedules[0]]
    np.testing.assert_allclose(shares, [1.0, 0.3125, 0.65625, 1.0], rtol=1e-6)


_EPSILON = 0.15
_ADVERSARIAL_CONFIG = TrainingConfig(
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


@pytest.fixture(scope="module")
def many_records(tmp_path_factory):
    """600 digits to train on, some of them for validation, and 200 to test on."""
    folder = tmp_path_factory.mktemp("records")
    config = DataConfig(shards=1, max_train_examples=600, max_test_examples=200)
    ingest(config, 0, folder, lambda *_: None)
    return folder


@pytest.fixture(scope="module")
def adversarially_trained(many_records, tmp_path_factory):
    """The folder, the result and the progress reports of an uninterrupted training."""
    folder, reports = tmp_path_factory.mktemp("trained") / "train", []
    session = _open(
        many_records,
        folder,
        lambda *report: reports.append(report),
        config=_ADVERSARIAL_CONFIG,
    )
    return folder, train_on_adversarial_images(session), reports


def test_adversarial_training_leaves_models_their_history_and_how_they_were_made(
    adversarially_trained,
):
    folder, result, _ = adversarially_trained
    assert {path.name for path in folder.iterdir()} == {
        "adversarial_classifier.keras",
        "adversarial_sfm_classifier.keras",
        "adversarial_sfm_masker.keras",
        "defence.json",
        "history.json",
        "timing.json",
        "checkpoint",
        "logs",
    }
    description = json.loads((folder / "defence.json").read_text())
    assert description["preprocessor"] == "bit_depth_4"
    assert description["adversarial_training"] == {
        "method": "pgd",
        "epsilon": pytest.approx(_EPSILON),
        "step_size": pytest.approx(0.25 * _EPSILON),
        "iterations": 5,
        "beta": 6.0,
        "epochs": 4,
    }
    timing = json.loads((folder / "timing.json").read_text())
    assert {name: set(seconds) for name, seconds in timing.items()} == {
        "adversarial_training": {"classifier_seconds"},
        "sfm_adversarial_training": {"classifier_seconds", "masker_seconds"},
    }
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


def _robust_accuracy(model, images, labels):
    def measure(attacked):
        return keras.losses.sparse_categorical_crossentropy(
            labels, model(attacked), from_logits=True
        )

    seed = tf.constant([1, 2])
    return _accuracy(
        model, adversarial_images(tf.constant(images), measure, _EPSILON, 0.02, 20, seed), labels
    )


def test_adversarial_training_is_more_robust_than_ordinary_training(
    many_records, adversarially_trained, tmp_path
):
    session = _open(many_records, tmp_path, config=_ADVERSARIAL_CONFIG)
    factory, schedule = session.factory, (Epoch("ordinary", (Phase.CLASSIFIER,)),) * 6
    ordinary, _ = session.train("ordinary", factory.bare, schedule, factory.seeds.order)
    images, labels = _images(many_records, "test")
    least = _robust_accuracy(ordinary, images, labels) + 0.1
    for model in load_adversarial_models(adversarially_trained[0]).values():
        assert _robust_accuracy(model, images, labels) > least


def test_reported_accuracy_is_that_of_the_loaded_adversarial_models(
    many_records, adversarially_trained
):
    images, labels = _images(many_records)
    for name, model in load_adversarial_models(adversarially_trained[0]).items():
        reported = adversarially_trained[1].history[name][-1]["validation"]
        accuracy = _accuracy(model, images, labels)
        assert reported["defended_accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert reported["adversarial_accuracy"] < reported["defended_accuracy"]


def test_adversarial_training_continues_from_a_checkpoint_to_the_same_weights(
    many_records, adversarially_trained, tmp_path
):
    folder, _, reports = adversarially_trained
    shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint")
    (tmp_path / "checkpoint/sfm_adversarial_training/epoch_00006.npz").unlink()
    steps = []
    session = _open(
        many_records,
        tmp_path,
        lambda *report: steps.append(report[:2]),
        config=_ADVERSARIAL_CONFIG,
    )
    train_on_adversarial_images(session)
    assert {stage for stage, _ in steps} == {"adversarial_alternation"}
    assert steps == [report[:2] for report in reports[-len(steps) :]]
    assert len(steps) == steps[-1][1] / 4
    images, _ = _images(many_records)
    whole, resumed = (load_adversarial_models(each) for each in (folder, tmp_path))
    for name in whole:
        np.testing.assert_allclose(whole[name](images), resumed[name](images), atol=1e-4)


def test_trades_trains_as_well_and_a_mask_that_collapses_is_reported(records, tmp_path):
    session = _open(
        records.folder,
        tmp_path,
        config=_ADVERSARIAL_CONFIG,
        adversarial_training="trades",
        pretraining_epochs=0,
        adversarial_epochs=3,
        alternation="step",
        **_COLLAPSING,
    )
    result = train_on_adversarial_images(session)
    epoch = result.history["sfm_adversarial_training"][-1]
    assert {"classification_loss", "mask_loss"} <= set(epoch["training"])
    description = json.loads((tmp_path / "defence.json").read_text())
    assert description["adversarial_training"]["method"] == "trades"
    assert result.warning.startswith("The mask collapsed to zeros")


def test_adversarial_training_without_a_method_is_refused(records, tmp_path):
    session = _open(records.folder, tmp_path)
    with pytest.raises(SfmError, match="Unknown adversarial training 'none'; expected one of pgd"):
        train_on_adversarial_images(session)
