"""Tests of the models that training leaves: they are read as they were, or refused."""

import json

import keras
import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.training.model_files import (
    load_adversarial_models,
    load_defended_model,
    load_source_model,
    save_adversarial_models,
    save_models,
)

_SHAPE = (4, 4, 1)
_IMAGES = np.random.default_rng(0).uniform(size=(3, *_SHAPE)).astype(np.float32)
_NAMES = ("cat", "dog")


def _model(last_layer, shape=_SHAPE):
    inputs = keras.Input(shape)
    return keras.Model(inputs, last_layer(inputs))


def _classifier(classes=2, shape=_SHAPE):
    return _model(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(classes)]), shape)


def _defended():
    masker = _model(keras.layers.Conv2D(1, 1, activation="sigmoid"))
    return DefendedModel(_classifier(), masker, parse_preprocessor("bit_depth_2", "smooth"))


def _assert_same(model, expected):
    np.testing.assert_allclose(model(_IMAGES), expected(_IMAGES), atol=1e-6)


@pytest.fixture
def saved(tmp_path):
    """A folder with a defended model and a source model, and the two of them."""
    defended, source = _defended(), _classifier()
    save_models(tmp_path, defended, source, _NAMES)
    return tmp_path, defended, source


@pytest.fixture
def saved_adversarial(tmp_path):
    """A folder with models trained on adversarial images, and the two of them."""
    bare, defended = _classifier(), _defended()
    save_adversarial_models(tmp_path, bare, defended, _NAMES, {"method": "pgd"})
    return tmp_path, bare, defended


def test_each_part_is_in_a_file_of_its_own_and_answers_as_before(saved):
    folder, defended, source = saved
    names = {"classifier.keras", "masker.keras", "source.keras", "defence.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "defence.json").read_text()) == {
        "preprocessor": "bit_depth_2",
        "surrogate": "smooth",
        "class_names": ["cat", "dog"],
        "input_shape": [4, 4, 1],
    }
    loaded = load_defended_model(folder)
    assert loaded.preprocessor == defended.preprocessor
    _assert_same(loaded.classifier, defended.classifier)
    _assert_same(loaded.masker, defended.masker)
    _assert_same(load_source_model(folder), source)


def test_adversarially_trained_models_answer_as_before(saved_adversarial):
    folder, bare, defended = saved_adversarial
    models = load_adversarial_models(folder)
    assert list(models) == ["adversarial_training", "sfm_adversarial_training"]
    alone, masked = models.values()
    assert (alone.masker, alone.preprocessor.spec) == (None, "none")
    assert masked.preprocessor == defended.preprocessor
    _assert_same(alone, bare)
    _assert_same(masked, defended)
    description = json.loads((folder / "defence.json").read_text())
    assert description["adversarial_training"] == {"method": "pgd"}
    assert description["preprocessor"] == "bit_depth_2"


def test_no_temporary_files_remain_even_when_the_rename_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_models(tmp_path, _defended(), _classifier(), _NAMES)
    assert list(tmp_path.iterdir()) == []


_LOADERS = {
    "classifier.keras": load_defended_model,
    "masker.keras": load_defended_model,
    "defence.json": load_defended_model,
    "source.keras": load_source_model,
}


@pytest.mark.parametrize("name", _LOADERS)
@pytest.mark.parametrize("keep", [None, 0, 30, -100])
def test_file_that_is_missing_or_cut_short_is_named(saved, name, keep):
    path = saved[0] / name
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    with pytest.raises(SfmError, match=rf"Cannot read .*{name} .*train again"):
        _LOADERS[name](saved[0])


@pytest.mark.parametrize(
    "name",
    [
        "adversarial_classifier.keras",
        "adversarial_sfm_classifier.keras",
        "adversarial_sfm_masker.keras",
        "defence.json",
    ],
)
def test_missing_file_of_adversarial_training_is_named(saved_adversarial, name):
    (saved_adversarial[0] / name).unlink()
    with pytest.raises(SfmError, match=rf"Cannot read .*{name} .*train again"):
        load_adversarial_models(saved_adversarial[0])


def test_file_with_a_flipped_bit_is_named(saved):
    path = saved[0] / "classifier.keras"
    data = bytearray(path.read_bytes())
    kernel = saved[1].classifier.get_weights()[0].tobytes()
    data[data.index(kernel) + 5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SfmError, match=r"Cannot read .*classifier.keras"):
        load_defended_model(saved[0])


@pytest.mark.parametrize("field", ["preprocessor", "surrogate", "class_names", "input_shape"])
def test_description_without_a_field_is_refused(saved, field):
    path = saved[0] / "defence.json"
    value = json.loads(path.read_text())
    del value[field]
    path.write_text(json.dumps(value))
    with pytest.raises(SfmError, match=rf"Cannot read .*defence.json \('{field}'\)"):
        load_defended_model(saved[0])


@pytest.mark.parametrize("options", [{"classes": 5}, {"shape": (8, 8, 1)}])
def test_model_that_does_not_fit_the_description_is_refused(saved, options):
    _classifier(**options).save(saved[0] / "source.keras")
    with pytest.raises(SfmError, match=r"source.keras maps .* expected \(4, 4, 1\) to \(2,\)"):
        load_source_model(saved[0])


def test_model_with_code_in_it_is_refused(saved):
    lambda_layer = keras.layers.Lambda(lambda values: values[:, 0, 0, :1] * [1.0, 2.0])
    _model(lambda_layer).save(saved[0] / "source.keras")
    with pytest.raises(SfmError, match=r"Cannot read .*source.keras"):
        load_source_model(saved[0])
