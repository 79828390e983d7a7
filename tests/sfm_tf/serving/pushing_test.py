import dataclasses
import importlib.util
import json
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
from sfm_tf.serving.pushing import EvaluatedModel, PushedModel, push_blessed

IMAGES = np.random.default_rng(0).random((5, 6, 6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1, 0])
BLESSED = Blessing(True, ("All is well.",))
NOT_BLESSED = Blessing(False, ("Accuracy is 0.1, below 0.5.", "The white box was not run."))
CARD = "# Model card\n\nNot for äny decision.\n"


@pytest.fixture(scope="module")
def evaluated():
    classifier = keras.Sequential(
        [keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    return EvaluatedModel(
        defended=DefendedModel(classifier, preprocessor=parse_preprocessor("bit_depth_4")),
        class_names=["cat", "dog"],
        images=IMAGES,
        labels=LABELS,
        blessing=BLESSED,
        manifest={"artifact": {"fingerprint": "ab12"}, "events": []},
        model_card=CARD,
    )


@pytest.fixture(autouse=True)
def verified(monkeypatch):
    """Stands in for the fresh process, and keeps what it was asked."""
    asked = []

    def verify(*arguments, **options):
        asked.append((arguments, options))

    monkeypatch.setattr(pushing, "verify_saved_model", verify)
    return asked


def push(folder: pathlib.Path, evaluated: EvaluatedModel, **settings: object) -> PushedModel:
    config = ExportConfig(serving_dir=str(folder / "serving"), model_name="model", **settings)
    staging = folder / f"staging{len(list(folder.iterdir()))}"
    staging.mkdir()
    return push_blessed(evaluated, config, staging)


def test_a_blessed_model_is_verified_and_pushed(tmp_path, evaluated, verified):
    pushed = push(tmp_path, evaluated)
    assert pushed.folder == str(tmp_path / "serving" / "model" / "1")
    assert pushed.version == 1
    (((staged, defended, images, labels), options),) = verified
    assert (staged / "saved_model.pb").is_file()
    assert (defended, options) == (evaluated.defended, {"same_arithmetic": True})
    assert images is IMAGES
    assert labels is LABELS
    signature = tf.saved_model.load(pushed.folder).signatures["serving_default"]
    expected = evaluated.defended(IMAGES).numpy()
    np.testing.assert_allclose(signature(images=IMAGES)["logits"], expected, atol=1e-5)


def test_the_papers_of_the_model_travel_with_it(tmp_path, evaluated):
    extra = pathlib.Path(push(tmp_path, evaluated).folder) / "assets.extra"
    assert (extra / "MODEL_CARD.md").read_text(encoding="utf-8") == CARD
    assert json.loads((extra / "manifest.json").read_text()) == {
        "artifact": {"fingerprint": "ab12"},
        "events": [],
        "blessed": True,
        "reasons": ["All is well."],
    }


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_serving") is None, reason="tensorflow-serving-api"
)
def test_warm_up_requests_travel_with_it(tmp_path, evaluated):
    pushed = push(tmp_path, evaluated)
    # Three signatures at 1, 2, 4, 8, 16, 32 and 64 images.
    assert pushed.warm_up_requests == 21
    file = pathlib.Path(pushed.folder) / "assets.extra" / "tf_serving_warmup_requests"
    assert len(list(tf.data.TFRecordDataset(str(file)))) == 21


def test_without_the_package_for_warm_up_requests_there_are_none(tmp_path, evaluated, monkeypatch):
    monkeypatch.setattr(pushing.importlib.util, "find_spec", lambda name: None)
    pushed = push(tmp_path, evaluated)
    assert pushed.warm_up_requests == 0
    assert not list(pathlib.Path(pushed.folder).rglob("tf_serving_warmup_requests"))


def test_a_server_finds_its_configuration_beside_the_models(tmp_path, evaluated):
    push(tmp_path, evaluated)
    text = (tmp_path / "serving" / "models.config").read_text()
    assert 'name: "model"' in text


def test_a_model_that_is_not_blessed_is_refused_with_every_reason(tmp_path, evaluated):
    with pytest.raises(SfmError) as caught:
        push(tmp_path, dataclasses.replace(evaluated, blessing=NOT_BLESSED))
    message = str(caught.value)
    assert "NOT_BLESSED" in message
    assert all(reason in message for reason in NOT_BLESSED.reasons)
    assert not (tmp_path / "serving").exists()


def test_it_is_pushed_where_that_is_allowed_and_says_so(tmp_path, evaluated):
    not_blessed = dataclasses.replace(evaluated, blessing=NOT_BLESSED)
    pushed = push(tmp_path, not_blessed, allow_not_blessed=True)
    manifest = pathlib.Path(pushed.folder) / "assets.extra" / "manifest.json"
    assert json.loads(manifest.read_text())["blessed"] is False
    assert push(tmp_path, evaluated).version == 2


def test_an_export_that_fails_its_verification_is_not_pushed(tmp_path, evaluated, monkeypatch):
    def fail(*arguments, **options):
        raise SfmError("a label differs")

    monkeypatch.setattr(pushing, "verify_saved_model", fail)
    with pytest.raises(SfmError, match="a label differs"):
        push(tmp_path, evaluated)
    assert not (tmp_path / "serving").exists()


def test_another_precision_is_exported_and_verified_as_such(tmp_path, evaluated, verified):
    pushed = push(tmp_path, evaluated, precision="bfloat16")
    assert verified[0][1] == {"same_arithmetic": False}
    signature = tf.saved_model.load(pushed.folder).signatures["serving_default"]
    assert signature(images=IMAGES)["logits"].dtype == tf.float32


def test_no_more_versions_are_kept_than_asked_for(tmp_path, evaluated):
    for _ in range(3):
        pushed = push(tmp_path, evaluated, keep_versions=2)
    folders = (tmp_path / "serving" / "model").glob("[0-9]*")
    assert sorted(path.name for path in folders) == ["2", "3"]
    assert pushed.version == 3


def test_a_model_goes_to_an_object_store_without_configuration(tmp_path, evaluated, monkeypatch):
    seen = []
    monkeypatch.setattr(pushing, "publish", lambda staged, folder: seen.append(folder) or 7)
    config = ExportConfig(serving_dir="gs://bucket/models", model_name="model")
    pushed = push_blessed(evaluated, config, tmp_path)
    assert seen == ["gs://bucket/models/model"]
    assert pushed.folder == "gs://bucket/models/model/7"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved_model"]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
