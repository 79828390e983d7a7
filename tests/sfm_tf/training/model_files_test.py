"""Tests of the files that training leaves."""

import json

import keras
import numpy as np
import pytest

from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.training.model_files import save_adversarial_models, save_models

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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
