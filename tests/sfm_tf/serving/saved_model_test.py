import json

import keras
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving.saved_model import check_no_python_ops, export_saved_model, op_types


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


@pytest.mark.parametrize(
    ("layer", "op"), [(PythonHalving(), "EagerPyFunc"), (NumpyHalving(), "PyFunc")]
)
def test_ops_that_call_python_are_refused(tmp_path, layer, op):
    with pytest.raises(SfmError, match=rf"it has {op} ops, which call back into Python"):
        export_saved_model(defended_model(layer), ["a", "b", "c"], tmp_path / "model")


def test_an_existing_folder_is_refused(tmp_path):
    with pytest.raises(SfmError, match="exists already"):
        export_saved_model(defended_model(), ["a", "b", "c"], tmp_path)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
