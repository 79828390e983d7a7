import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving.saved_model import (
    check_no_python_ops,
    export_saved_model,
    op_types,
)


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


@pytest.fixture(scope="module")
def defended():
    return defended_model()


@pytest.fixture(scope="module")
def exported(defended, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_saved_model(defended, ["cat", "a <b> & c", "\u00c4pfel"], folder)
    return folder


def test_class_names_travel_with_the_model(exported):
    stored = (exported / "assets.extra" / "class_names.json").read_text("utf-8")
    assert json.loads(stored) == ["cat", "a <b> & c", "\u00c4pfel"]


def test_every_graph_and_function_is_searched_for_ops(exported, tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
    # MatMul of the Dense layer stands in a function of the library, not in the graph itself.
    assert "MatMul" in set(op_types(exported))
    assert "MatMul" not in set(op_types(tmp_path / "empty"))
    check_no_python_ops(exported)


def test_a_session_answers_good_and_bad_files_in_one_batch_as_eager_execution_does(
    defended, exported
):
    image = tf.io.encode_png(tf.fill((6, 6, 1), tf.constant(200, tf.uint8))).numpy()
    large = image[:16] + (5000).to_bytes(4, "big") + image[20:]
    files = [image, b"", b"text", large, b"GIF89a", image[:40], image[:33] + bytes(30), image]
    eager = tf.saved_model.load(str(exported)).signatures["predict_bytes"](
        image_bytes=tf.constant(files)
    )
    # TensorFlow Serving runs a SavedModel in a session.
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(exported))
        signature = loaded.signature_def["predict_bytes"]
        fetches = {name: output.name for name, output in signature.outputs.items()}
        served = session.run(fetches, {signature.inputs["image_bytes"].name: files})
    for name in ("status", "class_id", "logits"):
        np.testing.assert_array_equal(eager[name], served[name])
    class_id = int(np.argmax(defended(np.full((1, 6, 6, 1), 200 / 255, np.float32))))
    assert served["status"].tolist() == [0, 1, 1, 2, 1, 1, 1, 0]
    assert served["class_id"].tolist() == [class_id, -1, -1, -1, -1, -1, -1, class_id]


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
