import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.config import ExportConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.blessing import Blessing
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving import pushing

IMAGES = np.random.default_rng(0).random((5, 6, 6, 3)).astype(np.float32)
BLESSED = Blessing(True, ("All is well.",))
NOT_BLESSED = Blessing(False, ("Accuracy is 0.1, below 0.5.", "The white box was not run."))


def defended_model() -> DefendedModel:
    classifier = keras.Sequential(
        [keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    return DefendedModel(classifier, preprocessor=parse_preprocessor("bit_depth_4"))


def push(folder: pathlib.Path, blessing: Blessing, **settings: object) -> pushing.PushedModel:
    config = ExportConfig(serving_dir=str(folder / "serving"), model_name="model", **settings)
    staging = folder / f"staging{len(list(folder.iterdir()))}"
    staging.mkdir()
    return pushing.push_blessed(defended_model(), ["cat", "dog"], IMAGES, blessing, config, staging)


def test_a_blessed_model_is_verified_and_pushed(tmp_path):
    pushed = push(tmp_path, BLESSED)
    assert pushed.folder == tmp_path / "serving" / "model" / "1"
    assert pushed.version == 1
    assert pushed.verification.examples == 5
    assert pushed.verification.disagreeing_labels == 0
    signature = tf.saved_model.load(str(pushed.folder)).signatures["serving_default"]
    assert signature(images=tf.constant(IMAGES))["logits"].shape == (5, 2)


def test_a_model_that_is_not_blessed_is_refused_with_every_reason(tmp_path):
    with pytest.raises(SfmError) as caught:
        push(tmp_path, NOT_BLESSED)
    message = str(caught.value)
    assert "NOT_BLESSED" in message
    assert all(reason in message for reason in NOT_BLESSED.reasons)
    assert not (tmp_path / "serving").exists()


def test_it_is_pushed_where_that_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(pushing, "verify_saved_model", lambda *arguments: None)
    assert push(tmp_path, NOT_BLESSED, allow_not_blessed=True).version == 1
    assert push(tmp_path, BLESSED).version == 2


def test_an_export_that_fails_its_verification_is_not_pushed(tmp_path, monkeypatch):
    def fail(*arguments):
        raise SfmError("a label differs")

    monkeypatch.setattr(pushing, "verify_saved_model", fail)
    with pytest.raises(SfmError, match="a label differs"):
        push(tmp_path, BLESSED)
    assert not (tmp_path / "serving").exists()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
