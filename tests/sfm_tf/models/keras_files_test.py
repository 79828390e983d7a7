"""Tests of reading Keras files, whole, damaged and hostile ones."""

import keras
import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.models.keras_files import load_keras_file


def _saved(path, *layers):
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), *layers])
    model.save(path)
    return model


def test_model_computes_what_it_did(tmp_path):
    images = np.random.default_rng(0).random((3, 2, 2, 1), np.float32)
    model = _saved(tmp_path / "model.keras", keras.layers.Dense(2))
    loaded = load_keras_file(tmp_path / "model.keras", "train again")
    np.testing.assert_array_equal(loaded(images), model(images))


def _cut(path):
    path.write_bytes(path.read_bytes()[:100])


def _with_code(path):
    _saved(path, keras.layers.Lambda(lambda values: values * 2.0))


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), _cut, lambda path: path.write_text("x"), _with_code]
)
def test_file_that_is_no_safe_model_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "model.keras"
    _saved(path, keras.layers.Dense(2))
    damage(path)
    with pytest.raises(SfmError, match=r"^Cannot read .*model\.keras \(.+\); train again\.$") as e:
        load_keras_file(path, "train again")
    assert "\n" not in str(e.value)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
