"""Tests of the files that training leaves."""

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


def _model(last_layer):
    inputs = keras.Input(_SHAPE)
    return keras.Model(inputs, last_layer(inputs))


def _classifier():
    return _model(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)]))


def _defended():
    masker = _model(keras.layers.Conv2D(1, 1, activation="sigmoid"))
    return DefendedModel(_classifier(), masker, parse_preprocessor("median_2", "smooth"))


def test_each_part_is_in_its_own_file(tmp_path):
    defended, source = _defended(), _classifier()
    save_models(tmp_path, defended, source, ("cat", "dog"))
    images = np.random.default_rng(0).uniform(size=(3, *_SHAPE)).astype(np.float32)
    expected = {
        "classifier.keras": defended.classifier,
        "masker.keras": defended.masker,
        "source.keras": source,
    }
    for name, model in expected.items():
        loaded = keras.saving.load_model(tmp_path / name, safe_mode=True)
        np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)


def test_description_holds_what_the_models_do_not(tmp_path):
    save_models(tmp_path, _defended(), _classifier(), ("cat", "dog"))
    assert json.loads((tmp_path / "defence.json").read_text()) == {
        "preprocessor": "median_2",
        "surrogate": "smooth",
        "class_names": ["cat", "dog"],
        "input_shape": [4, 4, 1],
    }


def test_adversarially_trained_models_are_beside_what_made_them(tmp_path):
    bare, defended = _classifier(), _defended()
    save_adversarial_models(tmp_path, bare, defended, ("cat", "dog"), {"method": "pgd"})
    images = np.random.default_rng(0).uniform(size=(3, *_SHAPE)).astype(np.float32)
    expected = {
        "adversarial_classifier.keras": bare,
        "adversarial_sfm_classifier.keras": defended.classifier,
        "adversarial_sfm_masker.keras": defended.masker,
    }
    for name, model in expected.items():
        loaded = keras.saving.load_model(tmp_path / name, safe_mode=True)
        np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)
    description = json.loads((tmp_path / "defence.json").read_text())
    assert description["adversarial_training"] == {"method": "pgd"}
    assert description["preprocessor"] == "median_2"


def test_no_temporary_files_remain_even_when_the_rename_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_models(tmp_path, _defended(), _classifier(), ("cat", "dog"))
    assert list(tmp_path.iterdir()) == []


_LOADED_SHAPE = (4, 4, 1)


def _loading_model(last_layer, shape=_LOADED_SHAPE):
    inputs = keras.Input(shape)
    return keras.Model(inputs, last_layer(inputs))


def _loading_classifier(classes=2, shape=_LOADED_SHAPE):
    return _loading_model(
        keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(classes)]), shape
    )


def _images():
    return np.random.default_rng(0).uniform(size=(3, *_LOADED_SHAPE)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    """A folder with a defended model and a source model, and the two of them."""
    masker = _loading_model(keras.layers.Conv2D(1, 1, activation="sigmoid"))
    defended = DefendedModel(
        _loading_classifier(), masker, parse_preprocessor("bit_depth_2", "smooth")
    )
    source = _loading_classifier()
    save_models(tmp_path, defended, source, ("cat", "dog"))
    return tmp_path, defended, source


def test_defended_model_answers_as_before(saved):
    folder, defended, _ = saved
    loaded = load_defended_model(folder)
    assert loaded.preprocessor == defended.preprocessor
    np.testing.assert_allclose(loaded(_images()), defended(_images()), atol=1e-6)


def test_source_model_answers_as_before(saved):
    folder, _, source = saved
    np.testing.assert_allclose(load_source_model(folder)(_images()), source(_images()), atol=1e-6)


@pytest.fixture
def saved_adversarial(tmp_path):
    """A folder with models trained on adversarial images, and the two of them."""
    masker = _loading_model(keras.layers.Conv2D(1, 1, activation="sigmoid"))
    defended = DefendedModel(
        _loading_classifier(), masker, parse_preprocessor("bit_depth_2", "smooth")
    )
    bare = _loading_classifier()
    save_adversarial_models(tmp_path, bare, defended, ("cat", "dog"), {"method": "pgd"})
    return tmp_path, bare, defended


def test_adversarially_trained_models_answer_as_before(saved_adversarial):
    folder, bare, defended = saved_adversarial
    models = load_adversarial_models(folder)
    assert list(models) == ["adversarial_training", "sfm_adversarial_training"]
    alone, masked = models.values()
    assert (alone.masker, alone.preprocessor.spec) == (None, "none")
    assert masked.preprocessor == defended.preprocessor
    np.testing.assert_allclose(alone(_images()), bare(_images()), atol=1e-6)
    np.testing.assert_allclose(masked(_images()), defended(_images()), atol=1e-6)


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


_LOADERS = {
    "classifier.keras": load_defended_model,
    "masker.keras": load_defended_model,
    "defence.json": load_defended_model,
    "source.keras": load_source_model,
}


@pytest.mark.parametrize("name", _LOADERS)
def test_missing_file_is_named(saved, name):
    (saved[0] / name).unlink()
    with pytest.raises(SfmError, match=rf"Cannot read .*{name} .*train again"):
        _LOADERS[name](saved[0])


@pytest.mark.parametrize("name", _LOADERS)
@pytest.mark.parametrize("keep", [0, 30, -100])
def test_file_cut_short_is_named(saved, name, keep):
    path = saved[0] / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SfmError, match=rf"Cannot read .*{name} .*train again"):
        _LOADERS[name](saved[0])


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


@pytest.mark.parametrize(
    "wrong", [_loading_classifier(classes=5), _loading_classifier(shape=(8, 8, 1))]
)
def test_model_that_does_not_fit_the_description_is_refused(saved, wrong):
    wrong.save(saved[0] / "source.keras")
    with pytest.raises(SfmError, match=r"source.keras maps .* expected \(4, 4, 1\) to \(2,\)"):
        load_source_model(saved[0])


def test_model_with_code_in_it_is_refused(saved):
    lambda_layer = keras.layers.Lambda(lambda values: values[:, 0, 0, :1] * [1.0, 2.0])
    _loading_model(lambda_layer).save(saved[0] / "source.keras")
    with pytest.raises(SfmError, match=r"Cannot read .*source.keras"):
        load_source_model(saved[0])
