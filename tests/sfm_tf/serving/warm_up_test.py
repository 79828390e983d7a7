"""Every stored request must be one that the stored model answers."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from sfm_tf.errors import SfmError
from sfm_tf.serving import warm_up

IMAGES = tf.TensorSpec((None, 8, 6, 1), tf.float32, name="images")
FILES = tf.TensorSpec((None,), tf.string, name="image_bytes")


class _Model(tf.Module):
    """Three signatures like those of a defended model; the sums tell what it was sent."""

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(2.0)

    @tf.function(input_signature=[IMAGES])
    def classify(self, images):
        return {"sums": self.weight * tf.reduce_sum(images, axis=(1, 2, 3))}

    @tf.function(input_signature=[FILES])
    def classify_bytes(self, image_bytes):
        def total(data):
            image = tf.ensure_shape(tf.io.decode_png(data, channels=1), (8, 6, 1))
            return tf.reduce_sum(tf.image.convert_image_dtype(image, tf.float32))

        return {"sums": tf.map_fn(total, image_bytes, fn_output_signature=tf.float32)}

    @tf.function(input_signature=[IMAGES])
    def explain(self, images):
        return {"mask": images}


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "1"
    model = _Model()
    signatures = {
        "serving_default": model.classify,
        "predict_bytes": model.classify_bytes,
        "explain": model.explain,
    }
    tf.saved_model.save(model, str(folder), signatures=signatures)
    return folder


def read(folder):
    stored = tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(data.numpy()) for data in stored]
    assert {log.WhichOneof("log_type") for log in logs} == {"predict_log"}
    return [log.predict_log.request for log in logs]


def test_the_model_answers_every_stored_request(saved_model):
    assert warm_up.write_warm_up_requests(saved_model, "digits", (1, 3, 8)) == 9
    requests = read(saved_model)
    served = tf.saved_model.load(str(saved_model)).signatures
    seen = []
    for request in requests:
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        tensors = {key: tf.constant(value) for key, value in inputs.items()}
        answers = served[request.model_spec.signature_name](**tensors)
        sizes = {len(answer) for answer in answers.values()}
        assert request.model_spec.name == "digits"
        seen.append((request.model_spec.signature_name, *sizes))
        if "sums" in answers:
            # Grey images of 8 x 6 pixels, which the first signature doubles.
            factor = {"serving_default": 2.0, "predict_bytes": 1.0}[seen[-1][0]]
            np.testing.assert_allclose(answers["sums"], factor * 24.0, rtol=0.01)
    names = ("serving_default", "predict_bytes", "explain")
    assert sorted(seen) == sorted((name, size) for name in names for size in (1, 3, 8))


def test_the_file_stays_small(saved_model):
    warm_up.write_warm_up_requests(saved_model, "digits", (1024,))
    pixels = 1024 * 8 * 6 * 4
    files = 1024 * 100
    size = (saved_model / warm_up.WARM_UP_FILE).stat().st_size
    assert size < files < pixels


def test_writing_again_replaces_what_was_there(saved_model):
    warm_up.write_warm_up_requests(saved_model, "first", (1, 2))
    warm_up.write_warm_up_requests(saved_model, "second", (4,))
    assert {request.model_spec.name for request in read(saved_model)} == {"second"}
    assert [path.name for path in (saved_model / "assets.extra").iterdir()] == [
        "tf_serving_warmup_requests"
    ]


@pytest.mark.parametrize("sizes", [(), (0,), (1, -1), (2, 2)])
def test_impossible_batch_sizes_are_refused(saved_model, sizes):
    with pytest.raises(SfmError, match="Invalid batch sizes .*; expected different positive"):
        warm_up.write_warm_up_requests(saved_model, "digits", sizes)


def test_more_requests_than_a_server_accepts_are_refused(saved_model):
    with pytest.raises(SfmError, match="3 signatures at 334 batch sizes need more than the 1000"):
        warm_up.write_warm_up_requests(saved_model, "digits", range(1, 335))


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (tf.TensorSpec((None,), tf.int64), r"is \[-1\] of int64"),
        (tf.TensorSpec((None, None, 6, 1), tf.float32), r"is \[-1, -1, 6, 1\] of float32"),
    ],
)
def test_an_input_that_no_image_fits_is_named(tmp_path, spec, found):
    module = tf.Module()
    module.same = tf.function(lambda x: {"y": x}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.same)
    with pytest.raises(SfmError, match=f"input .* {found}; expected float32 images"):
        warm_up.write_warm_up_requests(tmp_path / "1", "digits", (1,))
    assert not (tmp_path / "1" / warm_up.WARM_UP_FILE).exists()
