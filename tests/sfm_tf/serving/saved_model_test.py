import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving.saved_model import (
    check_no_python_ops,
    compare_precision,
    export_saved_model,
    op_types,
    served_model,
)

FRESH_PROCESS = """
import sys
sys.modules["sfm_tf"] = None
import tensorflow as tf
folder, number = sys.argv[1], int(sys.argv[2])
image = tf.io.encode_png(tf.cast(tf.fill((6, 6, 1), number), tf.uint8)).numpy()
files = [image, b"", b"text", b"GIF89a", image[:40], image[:33] + bytes(30), image]
files.insert(3, image[:16] + (5000).to_bytes(4, "big") + image[20:])
eager = tf.saved_model.load(folder).signatures["predict_bytes"](image_bytes=tf.constant(files))
# TensorFlow Serving runs a SavedModel in a session.
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    signature = tf.compat.v1.saved_model.load(session, ["serve"], folder).signature_def[
        "predict_bytes"
    ]
    fetches = {name: output.name for name, output in signature.outputs.items()}
    served = session.run(fetches, {signature.inputs["image_bytes"].name: files})
for name in ("status", "class_id", "logits"):
    assert (eager[name].numpy() == served[name]).all(), name
print(served["status"].tolist(), served["class_id"].tolist(), sep="\\n")
"""


class PythonHalving(keras.layers.Layer):
    """Pre-processing that only the process that traced it can run."""

    def call(self, images):
        halved = tf.py_function(lambda values: values / 2.0, [images], tf.float32)
        return tf.ensure_shape(halved, images.shape)


class NumpyHalving(keras.layers.Layer):
    """The same through `numpy_function`, inside a loop, which is a function of its own."""

    def call(self, images):
        def halve(image):
            halved = tf.numpy_function(lambda values: values / 2.0, [image], tf.float32)
            return tf.ensure_shape(halved, image.shape)

        return tf.map_fn(halve, images)


def defended_model(*layers: keras.layers.Layer) -> DefendedModel:
    classifier = keras.Sequential(
        [keras.Input((6, 6, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    return DefendedModel(classifier, preprocessor=parse_preprocessor("bit_depth_4+median_2"))


def test_class_names_travel_with_the_model(tmp_path):
    names = ["cat", "a <b> & c", "Äpfel"]
    export_saved_model(defended_model(), names, tmp_path / "model")
    stored = (tmp_path / "model" / "assets.extra" / "class_names.json").read_text("utf-8")
    assert json.loads(stored) == names
    assert "serving_default" in tf.saved_model.load(str(tmp_path / "model")).signatures


def test_every_graph_and_function_is_searched_for_ops(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
    export_saved_model(defended_model(), ["a", "b", "c"], tmp_path / "model")
    # MatMul of the Dense layer stands in a function of the library, not in the graph itself.
    assert "MatMul" in set(op_types(tmp_path / "model"))
    assert "MatMul" not in set(op_types(tmp_path / "empty"))
    check_no_python_ops(tmp_path / "model")


def test_a_fresh_process_answers_good_and_bad_files_in_one_batch(tmp_path):
    defended = defended_model()
    export_saved_model(defended, ["a", "b", "c"], tmp_path / "model")
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "model"), "200"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stderr
    statuses, class_ids = map(json.loads, answer.stdout.splitlines())
    assert statuses == [0, 1, 1, 2, 1, 1, 1, 0]
    image = np.full((1, 6, 6, 1), 200 / 255, np.float32)
    class_id = int(np.argmax(defended(image)))
    assert class_ids == [class_id, -1, -1, -1, -1, -1, -1, class_id]


def test_bfloat16_computes_in_16_bits_and_answers_in_32(tmp_path):
    layer = keras.layers.Conv2D(2, 1, use_bias=False)
    defended = defended_model(layer)
    layer.set_weights([np.full((1, 1, 1, 2), 1 + 1 / 512)])
    export_saved_model(defended, ["a", "b", "c"], tmp_path / "model", "bfloat16")
    signature = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    assert signature.structured_outputs["logits"].dtype == tf.float32
    kernel, bias = defended.classifier.layers[-1].get_weights()
    # The nearest of bfloat16's numbers, which are 1/128 apart here, is 1.
    expected = np.sum(kernel, axis=0) + bias
    found = signature(images=tf.ones((1, 6, 6, 1)))["logits"][0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.max(np.abs(defended(np.ones((1, 6, 6, 1), np.float32)) - expected)) > 1e-4


def test_float32_is_the_model_itself():
    defended = defended_model()
    assert served_model(defended, "float32") is defended


def test_unknown_precisions_are_refused(tmp_path):
    with pytest.raises(SfmError, match="'half'; expected one of float32, bfloat16"):
        export_saved_model(defended_model(), ["a", "b", "c"], tmp_path / "model", "half")


@pytest.mark.parametrize(
    ("layer", "op"), [(PythonHalving(), "EagerPyFunc"), (NumpyHalving(), "PyFunc")]
)
def test_ops_that_call_python_are_refused(tmp_path, layer, op):
    with pytest.raises(SfmError, match=rf"it has {op} ops, which call back into Python"):
        export_saved_model(defended_model(layer), ["a", "b", "c"], tmp_path / "model")


def test_an_existing_folder_is_refused(tmp_path):
    with pytest.raises(SfmError, match="exists already"):
        export_saved_model(defended_model(), ["a", "b", "c"], tmp_path)


# bfloat16 has 8 significant bits: next to 1 its numbers are 1/128 apart.
SCORES = np.array([[1.0, 1.0 + 1 / 512]], np.float32)


def two_scores() -> DefendedModel:
    """The brightness of one pixel times `SCORES`, on the way to an identity as the last layer."""
    inputs = keras.Input((1, 1, 1))
    scores, identity = (keras.layers.Dense(2, use_bias=False) for _ in range(2))
    model = keras.Model(inputs, identity(scores(keras.layers.Flatten()(inputs))))
    scores.set_weights([SCORES])
    identity.set_weights([np.eye(2)])
    return DefendedModel(model)


def test_classes_that_only_float32_tells_apart_are_counted():
    # Black: both logits are 0, class 0 in either. White: 1 and 1 + 1/512, equal in bfloat16.
    images = np.array([0.0, 1.0, 1.0, 1.0], np.float32).reshape(4, 1, 1, 1)
    difference = compare_precision(two_scores(), "bfloat16", images, np.array([0, 1, 1, 0]), 3)
    assert (difference.precision, difference.examples) == ("bfloat16", 4)
    assert difference.disagreeing_labels == 3
    assert difference.max_logit_difference == 1 / 512
    assert (difference.accuracy, difference.float32_accuracy) == (0.5, 0.75)


def test_float32_differs_in_nothing_from_itself():
    images = np.ones((2, 1, 1, 1), np.float32)
    difference = compare_precision(two_scores(), "float32", images, np.array([1, 1]))
    assert (difference.disagreeing_labels, difference.max_logit_difference) == (0, 0.0)
    assert (difference.accuracy, difference.float32_accuracy) == (1.0, 1.0)


@pytest.mark.parametrize(("images", "labels"), [(0, 0), (3, 2)])
def test_every_image_needs_a_label(images, labels):
    with pytest.raises(SfmError, match=f"on {images} images with {labels} labels; expected"):
        compare_precision(
            two_scores(), "bfloat16", np.ones((images, 1, 1, 1), np.float32), np.zeros(labels)
        )
