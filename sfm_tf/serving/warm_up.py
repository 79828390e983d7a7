"""Requests that a server answers for itself before it tells that a new version is ready.

TensorFlow compiles and allocates at the first request of each signature and batch size, which takes
many times as long as the next. TensorFlow Serving replays the requests stored with a version while
the version before it still answers, so no client waits for that.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import prediction_log_pb2

from sfm_tf.errors import SfmError
from sfm_tf.serving.saved_model import signature_defs

WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
"""Where TensorFlow Serving looks, in a version: a TFRecord file of `PredictionLog` messages."""

MAX_REQUESTS = 1000
"""A server refuses a version that comes with more."""

_PREDICT_METHOD = "tensorflow/serving/predict"
_GREY = 0.5
_FILE_SHAPE = (32, 32, 3)  # Of an image file, where no signature takes images.


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
        SfmError: If a size is not positive, there are too many requests, or the model has an input
            that no image fits.
    """
    signatures = {
        name: signature
        for name, signature in signature_defs(saved_model).items()
        if signature.method_name == _PREDICT_METHOD and signature.inputs
    }
    if not batch_sizes or min(batch_sizes) < 1 or len(set(batch_sizes)) != len(batch_sizes):
        raise SfmError(
            f"Invalid batch sizes {list(batch_sizes)}; expected different positive numbers."
        )
    if len(signatures) * len(batch_sizes) > MAX_REQUESTS:
        raise SfmError(
            f"{len(signatures)} signatures at {len(batch_sizes)} batch sizes need more than the "
            f"{MAX_REQUESTS} warm-up requests a server accepts; give fewer batch sizes."
        )
    requests = list(_requests(signatures, model_name, batch_sizes))
    target = saved_model / WARM_UP_FILE
    target.parent.mkdir(exist_ok=True)
    unfinished = target.with_name(f".{target.name}.tmp")
    with tf.io.TFRecordWriter(str(unfinished)) as writer:
        for request in requests:
            writer.write(request)
    os.replace(unfinished, target)
    return len(requests)


def _requests(
    signatures: Mapping[str, meta_graph_pb2.SignatureDef],
    model_name: str,
    batch_sizes: Sequence[int],
) -> Iterator[bytes]:
    inputs = [each for signature in signatures.values() for each in signature.inputs.values()]
    shapes = [_image_shape(each) for each in inputs if each.dtype != tf.string.as_datatype_enum]
    png = tf.io.encode_png(tf.fill((shapes or [_FILE_SHAPE])[0], tf.constant(127, tf.uint8)))
    for name, signature in signatures.items():
        for batch_size in batch_sizes:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model_name
            request.model_spec.signature_name = name
            for key, information in signature.inputs.items():
                request.inputs[key].CopyFrom(_examples(information, batch_size, png.numpy()))
            yield log.SerializeToString()


def _examples(information: meta_graph_pb2.TensorInfo, batch_size: int, png: bytes) -> TensorProto:
    if information.dtype == tf.string.as_datatype_enum:
        return tf.make_tensor_proto([png] * batch_size, tf.string)
    # One value stands for all that follow, so the file stays small.
    return tf.make_tensor_proto(_GREY, tf.float32, (batch_size, *_image_shape(information)))


def _image_shape(information: meta_graph_pb2.TensorInfo) -> tuple[int, ...]:
    shape = tuple(dimension.size for dimension in information.tensor_shape.dim)
    dtype = tf.dtypes.as_dtype(information.dtype)
    if dtype != tf.float32 or len(shape) != 4 or min(shape[1:]) < 1:
        raise SfmError(
            f"Cannot write warm-up requests: input {information.name} is {list(shape)} of "
            f"{dtype.name}; expected float32 images of a fixed size or strings."
        )
    return shape[1:]
