"""Tests of the whole training stage on records of a few small images."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from sfm_tf.artifacts import atomic_files
from sfm_tf.config import ModelConfig
from sfm_tf.errors import SfmError
from sfm_tf.records.example import ImageRecord
from sfm_tf.records.schema import Schema, write_schema
from sfm_tf.records.statistics import STATISTICS_FILE, compute_statistics
from sfm_tf.records.writing import SplitWriter
from sfm_tf.training import blueprint, workplace
from sfm_tf.training.loading import load_defended_model, load_source_model
from sfm_tf.training.training import train_defence
from sfm_tf.training_config import TrainingConfig

_SIZES = {"train": 60, "validation": 20, "test": 4}
_MODEL = ModelConfig(classifier_width=4, masker_width=4, masker_depth=1)
_CONFIG = TrainingConfig(
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
def records(tmp_path_factory):
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


def _train(records, folder, progress=lambda *_: None, **changes):
    config = dataclasses.replace(_CONFIG, **changes)
    return train_defence(records, _MODEL, config, 7, folder, progress)


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    """The folder, the result and the progress reports of a training of the real models."""
    folder, reports = tmp_path_factory.mktemp("trained") / "train", []
    result = _train(records, folder, lambda *report: reports.append(report))
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
    monkeypatch.setattr(blueprint, "build_classifier", _small_classifier)
    monkeypatch.setattr(blueprint, "build_masker", _small_masker)


class _Interruption(Exception):  # noqa: N818
    pass


def test_interrupted_training_ends_where_an_uninterrupted_one_does(records, tmp_path, small):
    def interrupt(stage, done, *_):
        if (stage, done) == ("source", 4):
            raise _Interruption

    _train(records, tmp_path / "whole")
    with pytest.raises(_Interruption):
        _train(records, tmp_path / "resumed", interrupt)
    steps = []
    _train(records, tmp_path / "resumed", lambda *report: steps.append(report[:2]))
    assert steps == [("source", 4), ("source", 5), ("source", 6)]
    # What was trained before the interruption counts as well.
    timing = json.loads((tmp_path / "resumed" / "timing.json").read_text())
    assert timing["classifier_seconds"] > 0.0
    assert timing["both_seconds"] > 0.0
    images, _ = _validation()
    for load in (load_defended_model, load_source_model):
        whole, resumed = (load(tmp_path / name)(images) for name in ("whole", "resumed"))
        np.testing.assert_allclose(resumed, whole, rtol=1e-5, atol=1e-6)


def test_models_trained_in_16_bits_are_kept_in_32(records, tmp_path, small):
    result = _train(records, tmp_path, mixed_precision="mixed_bfloat16")
    model = load_defended_model(tmp_path)
    computed = {layer.compute_dtype for layer in model.masker.layers + model.classifier.layers}
    assert computed == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    images, labels = _validation()
    accuracy = np.mean(model(images).numpy().argmax(1) == labels)
    assert accuracy == pytest.approx(result.validation["defended_accuracy"], abs=0.11)


def test_mask_that_collapses_is_reported(records, tmp_path, small):
    result = _train(
        records,
        tmp_path,
        sparsity_weight=10.0,
        semantic_weight=0.0,
        masker_learning_rate=0.5,
    )
    assert result.warning.startswith("The mask collapsed to zeros")


def test_ramp_begins_below_the_weight_at_which_masking_pays(records, tmp_path, small):
    shares = []

    def note(stage, done, *_):
        if stage == "alternation" and done % 3 == 1:
            shares.append(trainers[0].sparsity_share.numpy())

    trainers = []
    make = workplace.SparseFeatureMaskerTrainer.__init__

    def noted(self, *arguments, **options):
        make(self, *arguments, **options)
        trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workplace.SparseFeatureMaskerTrainer, "__init__", noted)
        _train(records, tmp_path, note, epochs=3, sparsity_ramp_epochs=2)
    # The ratio is 1.6; the ramp begins at 0.5 and is over after two epochs.
    np.testing.assert_allclose(shares, [0.3125, 0.65625, 1.0], rtol=1e-6)


def test_other_settings_do_not_resume(records, tmp_path, small):
    _train(records, tmp_path)
    with pytest.raises(SfmError, match=r"other settings \(semantic_weight\)"):
        _train(records, tmp_path, semantic_weight=5.0)


def test_depth_that_does_not_fit_the_images_is_refused(records, tmp_path):
    model_config = dataclasses.replace(_MODEL, masker_depth=4)
    with pytest.raises(SfmError, match="8x8 pixels cannot be halved 4 times"):
        train_defence(records, model_config, _CONFIG, 0, tmp_path, lambda *_: None)


def test_folder_without_records_is_refused(tmp_path):
    with pytest.raises(SfmError, match=r"No schema.json in"):
        _train(tmp_path, tmp_path / "train")


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
