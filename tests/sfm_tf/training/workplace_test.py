"""Tests of what the trainings of one stage share, on a few digits and models of one layer."""

import dataclasses
import functools

import keras
import numpy as np
import pytest

from sfm_tf.config import DataConfig, ModelConfig
from sfm_tf.datasets.ingestion import ingest
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.passes import Passes
from sfm_tf.training.phases import Phase
from sfm_tf.training.plan import Epoch
from sfm_tf.training.sparse_feature_masker_trainer import SparseFeatureMaskerTrainer
from sfm_tf.training.workplace import Workplace
from sfm_tf.training_config import TrainingConfig

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

    monkeypatch.setattr("sfm_tf.training.workplace.Passes", Noted)
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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
