"""Requests that a server answers for itself before it tells that a new version is ready.

TensorFlow compiles and allocates at the first request of each signature and batch size, which takes
many times as long as the next. TensorFlow Serving replays the requests stored with a version while
the version before it still answers, so no client waits for that.
"""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType

import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from sfm_tf.errors import SfmError

WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
"""Where TensorFlow Serving looks, in a version: a TFRecord file of `PredictionLog` messages."""

MAX_REQUESTS = 1000
"""A server refuses a version that comes with more."""

_PREDICT_METHOD = "tensorflow/serving/predict"
_GREY = 0.5
_IMAGE_SHAPE = (32, 32, 3)


def write_warm_up_requests(
    saved_model: pathlib.Path, model_name: str, batch_sizes: Sequence[int]
) -> int:
    """Stores one request for each signature and batch size with a SavedModel.

    Float inputs get grey images, string inputs grey PNG files: what has to be warm depends on
    shapes and types only.

    Args:
        saved_model: The SavedModel, not pushed yet; requests that it had are replaced.
        model_name: Name under which the server finds the model.
        batch_sizes: Numbers of images in a request. With batching on the server, its allowed
            sizes: it pads every batch to one of these, and refuses larger ones.

    Returns:
        How many requests were stored.

    Raises:
        SfmError: If tensorflow-serving-api is not installed, a size is not positive, there are too
            many requests, or the model has an input that no image fits.
    """
    messages = _messages()
    signatures = _signatures(saved_model)
    if not batch_sizes or min(batch_sizes) < 1 or len(set(batch_sizes)) != len(batch_sizes):
        raise SfmError(
            f"Invalid batch sizes {list(batch_sizes)}; expected different positive numbers."
        )
    if len(signatures) * len(batch_sizes) > MAX_REQUESTS:
        raise SfmError(
            f"{len(signatures)} signatures at {len(batch_sizes)} batch sizes need more than the "
            f"{MAX_REQUESTS} warm-up requests a server accepts; give fewer batch sizes."
        )
    requests = list(_requests(messages, signatures, model_name, batch_sizes))
    target = saved_model / WARM_UP_FILE
    target.parent.mkdir(exist_ok=True)
    unfinished = target.with_name(f".{target.name}.tmp")
    with tf.io.TFRecordWriter(str(unfinished)) as writer:
        for request in requests:
            writer.write(request)
    os.replace(unfinished, target)
    return len(requests)


def _messages() -> ModuleType:
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError as error:
        raise SfmError(
            f"Cannot write warm-up requests: {error}; install them with "
            "`pip install --no-deps tensorflow-serving-api==2.21.0`."
        ) from error
    return prediction_log_pb2


def _signatures(saved_model: pathlib.Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    message = saved_model_pb2.SavedModel()
    message.ParseFromString((saved_model / "saved_model.pb").read_bytes())
    (serving,) = [graph for graph in message.meta_graphs if "serve" in graph.meta_info_def.tags]
    return {
        name: signature
        for name, signature in sorted(serving.signature_def.items())
        if signature.method_name == _PREDICT_METHOD and signature.inputs
    }


def _requests(
    messages: ModuleType,
    signatures: Mapping[str, meta_graph_pb2.SignatureDef],
    model_name: str,
    batch_sizes: Sequence[int],
) -> Iterator[bytes]:
    inputs = [each for signature in signatures.values() for each in signature.inputs.values()]
    shapes = [_image_shape(each) for each in inputs if each.dtype == tf.float32.as_datatype_enum]
    png = tf.io.encode_png(tf.fill((shapes or [_IMAGE_SHAPE])[0], tf.constant(127, tf.uint8)))
    for name, signature in signatures.items():
        for batch_size in batch_sizes:
            log = messages.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model_name
            request.model_spec.signature_name = name
            for key, information in signature.inputs.items():
                make = _INPUTS.get(information.dtype, _refuse)
                request.inputs[key].CopyFrom(make(information, batch_size, png.numpy()))
            yield log.SerializeToString()


def _image_shape(information: meta_graph_pb2.TensorInfo) -> tuple[int, ...]:
    shape = tuple(dimension.size for dimension in information.tensor_shape.dim)[1:]
    if len(shape) != 3 or min(shape) < 1:
        _refuse(information, 0, b"")
    return shape


def _images(information: meta_graph_pb2.TensorInfo, batch_size: int, png: bytes) -> TensorProto:
    del png
    # One value stands for all that follow, so the file stays small.
    return tf.make_tensor_proto(_GREY, tf.float32, (batch_size, *_image_shape(information)))


def _files(information: meta_graph_pb2.TensorInfo, batch_size: int, png: bytes) -> TensorProto:
    del information
    return tf.make_tensor_proto([png] * batch_size, tf.string)


def _refuse(information: meta_graph_pb2.TensorInfo, batch_size: int, png: bytes) -> TensorProto:
    del batch_size, png
    shape = [dimension.size for dimension in information.tensor_shape.dim]
    raise SfmError(
        f"Cannot write warm-up requests: input {information.name} is {shape} of "
        f"{tf.dtypes.as_dtype(information.dtype).name}; expected float32 images of a fixed size or "
        "strings."
    )


_INPUTS: Mapping[int, Callable[..., TensorProto]] = {
    tf.float32.as_datatype_enum: _images,
    tf.string.as_datatype_enum: _files,
}
