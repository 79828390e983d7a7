"""Each check starts one fresh Python process, which takes the seconds that TensorFlow loads in."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving import verification
from sfm_tf.serving.saved_model import export_saved_model
from sfm_tf.serving.verification import verify_saved_model

CLASS_NAMES = ["a", "b", "c"]
IMAGES = np.random.default_rng(0).random((11, 6, 6, 1)).astype(np.float32)


def defended_model() -> DefendedModel:
    keras.utils.set_random_seed(0)
    convolution = keras.layers.Conv2D(4, 3, activation="relu")
    classifier = keras.Sequential(
        [keras.Input((6, 6, 1)), convolution, keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    return DefendedModel(classifier, preprocessor=parse_preprocessor("bit_depth_4+median_2"))


@pytest.fixture(scope="module")
def defended():
    return defended_model()


@pytest.fixture(scope="module")
def exported(defended, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_saved_model(defended, CLASS_NAMES, folder)
    return folder


def test_an_untouched_export_answers_as_the_keras_model(defended, exported):
    found = verify_saved_model(exported, defended, IMAGES, batch_size=4)
    assert found.examples == 11
    assert found.batch_sizes == (4, 1)
    assert found.disagreeing_labels == 0
    assert found.max_logit_difference <= 1e-4


def test_other_weights_are_refused(defended, tmp_path):
    tampered = defended_model()
    bias = tampered.classifier.layers[-1].bias
    bias.assign(bias + [0.0, 2.5, 0.0])
    export_saved_model(tampered, CLASS_NAMES, tmp_path / "model")
    with pytest.raises(SfmError, match=r"of 11 labels differ, and a logit differs by 2\.5"):
        verify_saved_model(tmp_path / "model", defended, IMAGES)


def test_damaged_variables_are_refused(defended, exported, tmp_path):
    tampered = tmp_path / "model"
    tf.io.gfile.makedirs(str(tampered / "variables"))
    for path in exported.rglob("*"):
        if path.is_file() and "assets.extra" not in path.parts:
            (tampered / path.relative_to(exported)).write_bytes(path.read_bytes())
    data = tampered / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-40])
    with pytest.raises(SfmError, match=r"does not work in a fresh process without sfm_tf"):
        verify_saved_model(tampered, defended, IMAGES)


@pytest.mark.parametrize(
    ("difference", "disagreeing", "message"),
    [
        (2e-4, 0, "0 of 2 labels differ, and a logit differs by 0.0002"),
        (0.0, 1, "1 of 2 labels differ"),
        (float("nan"), 0, "differs by nan"),
    ],
)
def test_answers_outside_the_tolerance_are_refused(
    defended, monkeypatch, difference, disagreeing, message
):
    expected = defended(IMAGES[:2]).numpy()
    class_ids = np.argmax(expected, axis=-1)
    class_ids[:disagreeing] += 1
    answers = [(expected + difference, class_ids), (expected, np.argmax(expected, axis=-1))]
    monkeypatch.setattr(verification, "_serve", lambda *arguments: answers)
    with pytest.raises(SfmError, match=message):
        verify_saved_model(pathlib.Path("unused"), defended, IMAGES[:2])


def test_a_process_that_takes_too_long_is_stopped(defended, exported):
    with pytest.raises(SfmError, match="took over 0.05 seconds"):
        verify_saved_model(exported, defended, IMAGES, timeout_seconds=0.05)


def test_the_fresh_process_inherits_no_steering_of_python(defended, exported, monkeypatch):
    seen = {}

    def record(command, **options):
        seen.update(options, command=command)
        raise verification.subprocess.TimeoutExpired(command, 1.0)

    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setattr(verification.subprocess, "run", record)
    with pytest.raises(SfmError):
        verify_saved_model(exported, defended, IMAGES)
    assert seen["command"][1] == "-I"
    assert not [name for name in seen["env"] if name.startswith("PYTHON")]
    assert not seen.get("shell", False)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
