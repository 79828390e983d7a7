"""Tests of the whole training stage on records of a few small images."""

import dataclasses
import functools
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.artifacts import atomic_files
from sfm_tf.datasets.ingestion import ingest
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.settings import ModelConfig
from sfm_tf.records.example import ImageRecord
from sfm_tf.records.schema import Schema, read_schema, write_schema
from sfm_tf.records.statistics import STATISTICS_FILE, compute_statistics
from sfm_tf.records.tfrecords import SplitWriter, load_split
from sfm_tf.training import model_building, training
from sfm_tf.training.adversarial_trainer import adversarial_images
from sfm_tf.training.model_files import (
    load_adversarial_models,
    load_defended_model,
    load_source_model,
)
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.trainer import Phase, SparseFeatureMaskerTrainer
from sfm_tf.training.training import (
    Workplace,
    defence_timing,
    split_seconds,
    train_defence,
    train_on_adversarial_images,
)
from sfm_tf.training.training_loop import Epoch, Passes


def _epoch(**seconds):
    return {"stage": "alternation", "training": {}, "validation": {}, "seconds": seconds}


def test_seconds_are_added_up_by_what_was_trained_and_taken_out():
    history = [_epoch(classifier=1.5), _epoch(classifier=2.0, masker=4.0), _epoch(masker=1.0)]
    lasting, seconds = split_seconds(history)
    assert seconds == {"classifier": 3.5, "masker": 5.0}
    assert lasting == [{"stage": "alternation", "training": {}, "validation": {}}] * 3
    assert "seconds" in history[0]


def test_epochs_that_train_both_at_once_are_a_part_of_their_own():
    assert split_seconds([_epoch(classifier=1.0), _epoch(both=2.5)])[1] == {
        "classifier": 1.0,
        "both": 2.5,
    }


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


_CONFIG = TrainingConfig(batch_size=20, augmentation="none", mixed_precision="mixed_bfloat16")
_PLAN = (Epoch("source", (Phase.CLASSIFIER,)),) * 2


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """100 real digits to train on and to validate with."""
    folder = tmp_path_factory.mktemp("records")
    config = DataConfig(shards=1, max_train_examples=100, max_test_examples=5)
    ingest(config, 0, folder, lambda split, count: None)
    return folder


def _open(records, folder, seed=3, **changes):
    config = dataclasses.replace(_CONFIG, **changes)
    return Workplace.open(records, ModelConfig(), config, seed, folder, lambda *_: None)


def _build():
    inputs = keras.Input((8, 8, 1))
    dense = keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    logits = dense(keras.layers.Flatten()(inputs))
    outputs = keras.layers.Activation("linear", dtype="float32")(logits)
    return DefendedModel(keras.Model(inputs, outputs))


def test_opening_reads_the_images_and_makes_the_folder(records, tmp_path):
    workplace = _open(records, tmp_path / "new")
    assert (tmp_path / "new").is_dir()
    counts = [len(split.labels) for split in (workplace.training, workplace.validation)]
    assert sum(counts) == 100
    assert workplace.training.images.shape == (counts[0], 8, 8, 1)
    assert workplace.steps_per_pass == counts[0] // 20
    assert workplace.settings["seed"] == 3
    assert workplace.settings["batch_size"] == 20


def test_model_is_trained_in_16_bits_and_returned_in_32(records, tmp_path):
    workplace, policies = _open(records, tmp_path), []

    def build():
        policies.append(keras.config.dtype_policy().name)
        return _build()

    model, history = workplace.train("alone", build, _PLAN, 0)
    assert policies == ["mixed_bfloat16", "float32"]
    assert {layer.compute_dtype for layer in model.classifier.layers} == {"float32"}
    assert [epoch["stage"] for epoch in history] == ["source", "source"]
    assert not np.array_equal(model.get_weights()[0], _build().get_weights()[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "logs"]
    assert (tmp_path / "checkpoint" / "alone").is_dir()


def test_trainer_is_the_one_asked_for_with_the_settings(records, tmp_path):
    made = []

    class Trainer(SparseFeatureMaskerTrainer):
        def __init__(self, model, *, extra, **options):
            super().__init__(model, **options)
            made.append((extra, options["weight_decay"]))

    make = functools.partial(Trainer, extra="more")
    _open(records, tmp_path).train("alone", _build, _PLAN[:1], 0, make)
    assert made == [("more", _CONFIG.weight_decay)]


def test_xla_compiles_the_steps_if_asked_and_learns_the_same(records, tmp_path, monkeypatch):
    asked = []

    class Noted(Passes):
        def __init__(self, *arguments, jit_compile):
            super().__init__(*arguments, jit_compile=jit_compile)
            asked.append(jit_compile)

    monkeypatch.setattr("sfm_tf.training.training.Passes", Noted)
    weights = []
    for name, jit_compile in (("plain", False), ("xla", True)):
        workplace = _open(
            records, tmp_path / name, jit_compile=jit_compile, mixed_precision="float32"
        )
        model, _ = workplace.train("alone", _build, _PLAN, 0)
        weights.append(model.get_weights())
    assert asked == [False, True]
    for plain, compiled in zip(*weights, strict=True):
        np.testing.assert_allclose(compiled, plain, atol=1e-5)


def test_checkpoints_of_another_seed_are_refused(records, tmp_path):
    _open(records, tmp_path).train("alone", _build, _PLAN[:1], 0)
    with pytest.raises(SfmError, match=r"other settings \(seed\)"):
        _open(records, tmp_path, seed=4).train("alone", _build, _PLAN, 0)


def test_folder_without_records_is_refused(tmp_path):
    with pytest.raises(SfmError, match=r"No schema.json in"):
        _open(tmp_path, tmp_path / "train")


_SIZES = {"train": 60, "validation": 20, "test": 4}
_MODEL = ModelConfig(classifier_width=4, masker_width=4, masker_depth=1)
_ALTERNATION_CONFIG = TrainingConfig(
    batch_size=20,
    pretraining_epochs=1,
    epochs=2,
    source_epochs=2,
    sparsity_weight=0.2,
    augmentation="crop",
    mixed_precision="float32",
)


def _records(folder, seed):
    """Yields images that are bright above or below the middle: two classes."""
    generator = np.random.default_rng(seed)
    for index in range(_SIZES[folder]):
        label = index % 2
        image = generator.integers(0, 100, (8, 8, 1), dtype=np.uint8)
        image[4 * label : 4 * label + 4] += 120
        yield ImageRecord(f"{folder}/{index}", image, label)


@pytest.fixture(scope="module")
def training_records(tmp_path_factory):
    """A folder of records as ingest writes them."""
    folder = tmp_path_factory.mktemp("records")
    for seed, split in enumerate(_SIZES):
        with SplitWriter(folder, split, 1) as writer:
            for record in _records(split, seed):
                writer.write(record)
    schema = Schema(8, 8, 1, ("above", "below"), _SIZES)
    atomic_files.write_json(folder / STATISTICS_FILE, compute_statistics(folder, schema))
    write_schema(schema, folder)
    return folder


def _train(training_records, folder, progress=lambda *_: None, **changes):
    config = dataclasses.replace(_ALTERNATION_CONFIG, **changes)
    return train_defence(training_records, _MODEL, config, 7, folder, progress)


@pytest.fixture(scope="module")
def trained(training_records, tmp_path_factory):
    """The folder, the result and the progress reports of a training of the real models."""
    folder, reports = tmp_path_factory.mktemp("trained") / "train", []
    result = _train(training_records, folder, lambda *report: reports.append(report))
    return folder, result, reports


def test_leaves_models_description_history_checkpoints_and_logs(trained):
    names = {path.name for path in trained[0].iterdir()}
    assert names == {
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


def test_history_counts_the_epochs_of_both_trainings(trained):
    folder, result, _ = trained
    history = json.loads((folder / "history.json").read_text())
    assert history == result.history
    stages = {name: [epoch["stage"] for epoch in epochs] for name, epochs in history.items()}
    assert stages == {
        "defence": ["pretraining", "alternation", "alternation"],
        "source": ["source", "source"],
    }


def test_timing_has_the_seconds_of_each_part_and_history_none(trained):
    timing = json.loads((trained[0] / "timing.json").read_text())
    parts = {"classifier_seconds", "masker_seconds", "both_seconds", "source_seconds"}
    assert set(timing) == parts
    assert {name for name in parts if timing[name] > 0.0} == parts - {"masker_seconds"}
    for epochs in trained[1].history.values():
        assert all(set(epoch) == {"stage", "training", "validation"} for epoch in epochs)


def test_loss_weights_are_kept_with_their_ratios(trained):
    weights = json.loads((trained[0] / "loss_weights.json").read_text())
    assert weights["sparsity_weight"] == 0.2
    assert weights["sparsity_ratio"] == pytest.approx(0.2 * 8)  # 64 values, w3 = 1.


def test_progress_ends_each_stage_at_its_total(trained):
    # 60 images in batches of 20 are 3 steps to a pass.
    last = {stage: (done, total) for stage, done, total, _ in trained[2]}
    assert last == {"pretraining": (3, 3), "alternation": (6, 6), "source": (6, 6)}


def _validation(seed=1):
    images = np.stack([record.image for record in _records("validation", seed)]) / 255
    return images.astype(np.float32), np.arange(len(images)) % 2


def test_loaded_model_has_the_accuracy_that_was_reported(trained):
    folder, result, _ = trained
    images, labels = _validation()
    model = load_defended_model(folder)
    defended = np.mean(model(images).numpy().argmax(1) == labels)
    bare = np.mean(model.classifier(images).numpy().argmax(1) == labels)
    assert result.validation["defended_accuracy"] == pytest.approx(defended, abs=1e-6)
    assert result.validation["bare_accuracy"] == pytest.approx(bare, abs=1e-6)
    assert model.mask(images).numpy().mean() == pytest.approx(
        result.validation["mask_mean"],
        abs=0.01,  # Reported for pre-processed images.
    )


def test_source_model_is_another_model(trained):
    images, _ = _validation()
    source, classifier = load_source_model(trained[0]), load_defended_model(trained[0]).classifier
    assert source.count_params() == classifier.count_params()
    assert np.abs(source(images).numpy() - classifier(images).numpy()).max() > 0.01


def _small_classifier(name, input_shape, class_count, width, mean, variance, seed):
    inputs = keras.Input(input_shape)
    features = keras.layers.BatchNormalization()(inputs)
    initializer = keras.initializers.GlorotUniform(seed=seed)
    dense = keras.layers.Dense(class_count, kernel_initializer=initializer)
    logits = dense(keras.layers.Flatten()(features))
    return keras.Model(inputs, keras.layers.Activation("linear", dtype="float32")(logits))


def _small_masker(input_shape, width, depth, seed, mask_bias):
    inputs = keras.Input(input_shape)
    initializer = keras.initializers.GlorotUniform(seed=seed)
    convolution = keras.layers.Conv2D(1, 3, padding="same", kernel_initializer=initializer)
    mask = keras.layers.Activation("sigmoid", dtype="float32")
    return keras.Model(inputs, mask(convolution(inputs)))


@pytest.fixture
def small(monkeypatch):
    """Replaces the models, whose graphs take seconds to trace, by ones of a layer each."""
    monkeypatch.setattr(model_building, "build_classifier", _small_classifier)
    monkeypatch.setattr(model_building, "build_masker", _small_masker)


class _Interruption(Exception):  # noqa: N818
    pass


def test_interrupted_training_ends_where_an_uninterrupted_one_does(
    training_records, tmp_path, small
):
    def interrupt(stage, done, *_):
        if (stage, done) == ("source", 4):
            raise _Interruption

    _train(training_records, tmp_path / "whole")
    with pytest.raises(_Interruption):
        _train(training_records, tmp_path / "resumed", interrupt)
    steps = []
    _train(training_records, tmp_path / "resumed", lambda *report: steps.append(report[:2]))
    assert steps == [("source", 4), ("source", 5), ("source", 6)]
    # What was trained before the interruption counts as well.
    timing = json.loads((tmp_path / "resumed" / "timing.json").read_text())
    assert timing["classifier_seconds"] > 0.0
    assert timing["both_seconds"] > 0.0
    images, _ = _validation()
    for load in (load_defended_model, load_source_model):
        whole, resumed = (load(tmp_path / name)(images) for name in ("whole", "resumed"))
        np.testing.assert_allclose(resumed, whole, rtol=1e-5, atol=1e-6)


def test_models_trained_in_16_bits_are_kept_in_32(training_records, tmp_path, small):
    result = _train(training_records, tmp_path, mixed_precision="mixed_bfloat16")
    model = load_defended_model(tmp_path)
    computed = {layer.compute_dtype for layer in model.masker.layers + model.classifier.layers}
    assert computed == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    images, labels = _validation()
    accuracy = np.mean(model(images).numpy().argmax(1) == labels)
    assert accuracy == pytest.approx(result.validation["defended_accuracy"], abs=0.11)


def test_mask_that_collapses_is_reported(training_records, tmp_path, small):
    result = _train(
        training_records,
        tmp_path,
        sparsity_weight=10.0,
        semantic_weight=0.0,
        masker_learning_rate=0.5,
    )
    assert result.warning.startswith("The mask collapsed to zeros")


def test_ramp_begins_below_the_weight_at_which_masking_pays(training_records, tmp_path, small):
    shares = []

    def note(stage, done, *_):
        if stage == "alternation" and done % 3 == 1:
            shares.append(trainers[0].sparsity_share.numpy())

    trainers = []
    make = training.SparseFeatureMaskerTrainer.__init__

    def noted(self, *arguments, **options):
        make(self, *arguments, **options)
        trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.SparseFeatureMaskerTrainer, "__init__", noted)
        _train(training_records, tmp_path, note, epochs=3, sparsity_ramp_epochs=2)
    # The ratio is 1.6; the ramp begins at 0.5 and is over after two epochs.
    np.testing.assert_allclose(shares, [0.3125, 0.65625, 1.0], rtol=1e-6)


def test_other_settings_do_not_resume(training_records, tmp_path, small):
    _train(training_records, tmp_path)
    with pytest.raises(SfmError, match=r"other settings \(semantic_weight\)"):
        _train(training_records, tmp_path, semantic_weight=5.0)


def test_depth_that_does_not_fit_the_images_is_refused(training_records, tmp_path):
    model_config = dataclasses.replace(_MODEL, masker_depth=4)
    with pytest.raises(SfmError, match="8x8 pixels cannot be halved 4 times"):
        train_defence(
            training_records, model_config, _ALTERNATION_CONFIG, 0, tmp_path, lambda *_: None
        )


def test_training_folder_without_records_is_refused(tmp_path):
    with pytest.raises(SfmError, match=r"No schema.json in"):
        _train(tmp_path, tmp_path / "train")


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
def adversarial_training_small():
    """Replaces the models, whose graphs take seconds to trace, by ones of few layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_building, "build_classifier", _classifier)
        patch.setattr(model_building, "build_masker", _masker)
        yield


@pytest.fixture(scope="module")
def adversarial_training_records(tmp_path_factory):
    """600 real digits to train on, some of them for validation, and 200 to test on."""
    folder = tmp_path_factory.mktemp("records")
    config = DataConfig(shards=1, max_train_examples=600, max_test_examples=200)
    ingest(config, 0, folder, lambda split, count: None)
    return folder


def _adversarial_training_train(
    adversarial_training_records, folder, progress=lambda *_: None, **changes
):
    config = dataclasses.replace(_ADVERSARIAL_CONFIG, **changes)
    return train_on_adversarial_images(
        adversarial_training_records, ModelConfig(), config, 7, folder, progress
    )


@pytest.fixture(scope="module")
def adversarial_training_trained(adversarial_training_records, tmp_path_factory):
    """The folder, the result and the progress reports of an uninterrupted training."""
    folder, reports = tmp_path_factory.mktemp("trained") / "train", []
    result = _adversarial_training_train(
        adversarial_training_records, folder, lambda *report: reports.append(report)
    )
    return folder, result, reports


def test_leaves_models_description_history_timing_checkpoints_and_logs(
    adversarial_training_trained,
):
    names = {path.name for path in adversarial_training_trained[0].iterdir()}
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
    description = json.loads((adversarial_training_trained[0] / "defence.json").read_text())
    assert description["preprocessor"] == "bit_depth_4"
    assert description["adversarial_training"] == {
        "method": "pgd",
        "epsilon": pytest.approx(_EPSILON),
        "step_size": pytest.approx(0.25 * _EPSILON),
        "iterations": 5,
        "beta": 6.0,
        "epochs": 4,
    }


def test_history_follows_the_plans_and_has_the_adversarial_accuracy(adversarial_training_trained):
    folder, result, _ = adversarial_training_trained
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


def test_timing_has_the_seconds_of_what_each_model_trained(adversarial_training_trained):
    timing = json.loads((adversarial_training_trained[0] / "timing.json").read_text())
    assert {name: set(seconds) for name, seconds in timing.items()} == {
        "adversarial_training": {"classifier_seconds"},
        "sfm_adversarial_training": {"classifier_seconds", "masker_seconds"},
    }


def _test_images(adversarial_training_records):
    images, labels = load_split(
        adversarial_training_records, "test", read_schema(adversarial_training_records)
    )
    return tf.constant(images), labels


def _robust_accuracy(model, images, labels):
    def measure(attacked):
        return keras.losses.sparse_categorical_crossentropy(
            labels, model(attacked), from_logits=True
        )

    attacked = adversarial_images(images, measure, _EPSILON, 0.02, 20, tf.constant([1, 2]))
    return np.mean(model(attacked).numpy().argmax(1) == labels)


@pytest.fixture(scope="module")
def ordinary(adversarial_training_records, tmp_path_factory):
    """The classifier of the same initial weights, trained as usual for as many epochs."""
    folder = tmp_path_factory.mktemp("ordinary")
    workplace = Workplace.open(
        adversarial_training_records, ModelConfig(), _ADVERSARIAL_CONFIG, 7, folder, lambda *_: None
    )
    seeds = workplace.blueprint.seeds
    plan = (Epoch("ordinary", (Phase.CLASSIFIER,)),) * 6
    return workplace.train("ordinary", workplace.blueprint.bare, plan, seeds.order)[0]


def test_adversarial_training_is_more_robust_than_ordinary_training(
    adversarial_training_records, adversarial_training_trained, ordinary
):
    images, labels = _test_images(adversarial_training_records)
    models = load_adversarial_models(adversarial_training_trained[0])
    accuracy = {name: _robust_accuracy(model, images, labels) for name, model in models.items()}
    accuracy["ordinary"] = _robust_accuracy(ordinary, images, labels)
    assert accuracy["adversarial_training"] > accuracy["ordinary"] + 0.1
    assert accuracy["sfm_adversarial_training"] > accuracy["ordinary"] + 0.1


def test_reported_accuracy_is_that_of_the_loaded_models(
    adversarial_training_records, adversarial_training_trained
):
    images, labels = load_split(
        adversarial_training_records, "validation", read_schema(adversarial_training_records)
    )
    for name, model in load_adversarial_models(adversarial_training_trained[0]).items():
        accuracy = np.mean(model(images).numpy().argmax(1) == labels)
        reported = adversarial_training_trained[1].history[name][-1]["validation"]
        assert reported["defended_accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert reported["adversarial_accuracy"] < reported["defended_accuracy"]


def test_training_goes_on_from_a_checkpoint_to_where_an_uninterrupted_one_ends(
    adversarial_training_records, adversarial_training_trained, tmp_path
):
    folder, _, reports = adversarial_training_trained
    shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint")
    (tmp_path / "checkpoint/sfm_adversarial_training/epoch_00006.npz").unlink()
    steps = []
    _adversarial_training_train(
        adversarial_training_records, tmp_path, lambda *report: steps.append(report[:2])
    )
    assert {stage for stage, _ in steps} == {"adversarial_alternation"}
    assert steps == [report[:2] for report in reports[-len(steps) :]]
    assert len(steps) == steps[-1][1] / 4
    images, _ = _test_images(adversarial_training_records)
    whole, resumed = (load_adversarial_models(each) for each in (folder, tmp_path))
    for name in whole:
        np.testing.assert_allclose(whole[name](images), resumed[name](images), atol=1e-4)


def test_trades_trains_as_well_and_a_mask_that_collapses_is_reported(
    adversarial_training_records, tmp_path
):
    result = _adversarial_training_train(
        adversarial_training_records,
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


def test_training_without_a_method_is_refused(adversarial_training_records, tmp_path):
    with pytest.raises(SfmError, match="Unknown adversarial training 'none'; expected one of pgd"):
        _adversarial_training_train(
            adversarial_training_records, tmp_path / "new", adversarial_training="none"
        )
    assert not (tmp_path / "new").exists()
