"""Requests that a server must refuse, each with the answer that is right."""

import base64
import http.client
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from benchmarks import hostile_images
from benchmarks.serving_load import PREDICT_METHOD, Address, encode

_TIMEOUT = 120.0
_HUGE_BODY = 100_000_000


class Subject(NamedTuple):
    """The server under abuse.

    Attributes:
        address: Where it is.
        model: Name of a model with the three signatures.
        image: An image that it classifies, `(height, width, channels)`.
    """

    address: Address
    model: str
    image: np.ndarray

    @property
    def path(self) -> str:
        """Path of the model."""
        return f"/v1/models/{self.model}"


Generator = np.random.Generator
Ask = Callable[[Subject, Generator], str]
"""Sends one request and returns how it was answered."""


class Kind(NamedTuple):
    """A kind of abuse.

    Attributes:
        name: What it is.
        expected: The right answer: HTTP's status, with the image's status for files, or gRPC's.
        ask: Sends one.
        is_heavy: Whether it is sent a few times only.
    """

    name: str
    expected: str
    ask: Ask
    is_heavy: bool = False


def _post(subject: Subject, path: str, body: bytes | Iterator[bytes]) -> tuple[int, bytes]:
    address = subject.address
    connection = http.client.HTTPConnection(address.host, address.rest_port, timeout=_TIMEOUT)
    try:
        connection.request("POST", path, body, encode_chunked=not isinstance(body, bytes))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _rest(make: Callable[[Subject, Generator], bytes | object], path: str = ":predict") -> Ask:
    def ask(subject: Subject, generator: Generator) -> str:
        body = make(subject, generator)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer = _post(subject, subject.path + path, data)
        if status != 200 and "error" not in json.loads(answer):
            return f"{status} without an error message"
        return str(status)

    return ask


def _instances(change: Callable[[np.ndarray, Generator], object]) -> Ask:
    """Sends an image after a change."""

    def make(subject: Subject, generator: Generator) -> object:
        changed = change(subject.image.copy(), generator)
        value = changed.tolist() if isinstance(changed, np.ndarray) else changed
        return {"instances": [value]}

    return _rest(make)


def _with_pixel(value: object) -> Callable[[np.ndarray, Generator], object]:
    """Puts a value into the place of one pixel."""

    def change(image: np.ndarray, generator: Generator) -> object:
        values = image.tolist()
        row = values[generator.integers(len(values))]
        row[generator.integers(len(row))][0] = value
        return values

    return change


def _constant(body: bytes | object, path: str = ":predict") -> Ask:
    return _rest(lambda subject, generator: body, path)


def _literal(text: bytes) -> Ask:
    """Sends an image with a number that `json.dumps` would not write."""

    def make(subject: Subject, generator: Generator) -> bytes:
        values = _with_pixel("@")(subject.image, generator)
        return json.dumps({"instances": [values]}).encode().replace(b'"@"', text)

    return _rest(make)


def _many(subject: Subject, generator: Generator) -> object:
    del generator
    return {"instances": [subject.image.tolist()] * 200}


def _chunks(subject: Subject, generator: Generator) -> str:
    del generator
    body = (b"x" * 1_000_000 for _ in range(_HUGE_BODY // 1_000_000))
    return str(_post(subject, subject.path + ":predict", body)[0])


def _rest_kinds() -> Iterator[Kind]:
    one = {"instances": [1]}
    yield Kind("empty body", "400", _constant(b""))
    yield Kind("random bytes", "400", _rest(lambda subject, generator: generator.bytes(300)))
    yield Kind("JSON that breaks off", "400", _constant(b'{"instances": [[0.1, '))
    yield Kind("JSON of another kind", "400", _constant([1, 2]))
    yield Kind("neither instances nor inputs", "400", _constant({"examples": [1]}))
    yield Kind("both instances and inputs", "400", _constant({"instances": [1], "inputs": [1]}))
    yield Kind("no instances", "400", _constant({"instances": []}))
    yield Kind("100,000 nested lists", "400", _constant(b'{"instances":' + b"[" * 100_000))
    yield Kind("wrong dtype: text", "400", _instances(_with_pixel("red")))
    yield Kind("wrong dtype: null", "400", _instances(_with_pixel(None)))
    yield Kind("wrong dtype: true", "400", _instances(_with_pixel(True)))
    yield Kind("wrong dtype: object", "400", _instances(_with_pixel({"a": 1})))
    yield Kind("wrong shape", "400", _instances(lambda image, generator: image[1:]))
    yield Kind("wrong channels", "400", _instances(lambda image, generator: image[..., :0]))
    yield Kind("ragged rows", "400", _instances(_with_pixel([0.1, 0.2])))
    yield Kind("wrong rank: pixels in a row", "400", _instances(lambda image, _: image.ravel()))
    yield Kind("wrong rank: one level more", "400", _instances(lambda image, _: image[None]))
    yield Kind("NaN", "400", _literal(b"NaN"))
    yield Kind("Infinity", "400", _literal(b"-Infinity"))
    yield Kind("number beyond a double", "400", _literal(b"1e999"))
    yield Kind("number of 5,000 digits", "400", _literal(b"9" * 5000))
    yield Kind("value below 0", "400", _instances(_with_pixel(-0.01)))
    yield Kind("8-bit values", "400", _instances(lambda image, _: np.rint(image * 255) + 2))
    yield Kind("batch of 200", "400", _rest(_many))
    yield Kind("unknown signature", "400", _constant({"signature_name": "x", "instances": [1]}))
    yield Kind("unknown version", "404", _constant(one, "/versions/999:predict"))
    yield Kind("version out of range", "400", _constant(one, f"/versions/{2**64}:predict"))
    yield Kind("unknown model", "404", _constant(one, "x:predict"))
    yield Kind("malformed route", "400", _constant(one, "/version/1:predict"))
    yield Kind("unknown verb", "400", _constant(one, ":explode"))
    yield Kind("bad base64", "400", _constant(_file_body("?!")))
    yield Kind("100 MB body", "413", _constant(b"x" * _HUGE_BODY), is_heavy=True)
    yield Kind("100 MB body in chunks", "413", _chunks, is_heavy=True)
    yield Kind("20 million lists", "413", _constant(b"[" + b"[]," * 20_000_000), is_heavy=True)


def _file_body(*texts: str) -> dict[str, object]:
    files = [{"b64": text} for text in texts]
    return {"signature_name": "predict_bytes", "instances": files}


def _files(make: hostile_images.Make) -> Ask:
    """Sends a file between two good ones, which must be answered as if it were not there."""

    def ask(subject: Subject, generator: Generator) -> str:
        files = [encode(subject.image, ".png"), make(generator), encode(subject.image, ".png")]
        body = json.dumps(_file_body(*[base64.b64encode(file).decode() for file in files]))
        status, answer = _post(subject, subject.path + ":predict", body.encode())
        if status != 200:
            return str(status)
        first, hostile, last = json.loads(answer)["predictions"]
        if first["status"] or last["status"] or first["class_id"] != last["class_id"]:
            return "200, but its neighbours failed"
        if not np.isfinite(hostile["logits"] + hostile["probabilities"]).all():
            return "200, but with NaN"
        return f"200, status {hostile['status']}"

    return ask


def _file_kinds() -> Iterator[Kind]:
    for status, files in ((1, hostile_images.UNDECODABLE), (2, hostile_images.TOO_LARGE)):
        for name, make in files.items():
            yield Kind(name, f"200, status {status}", _files(make))


def _grpc(change: Callable[[predict_pb2.PredictRequest, Subject], bytes | None]) -> Ask:
    """Sends a request after a change, or the bytes that it returns."""

    def ask(subject: Subject, generator: Generator) -> str:
        del generator
        request = predict_pb2.PredictRequest()
        request.model_spec.name = subject.model
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(subject.image[None]))
        data = change(request, subject)
        message = request.SerializeToString() if data is None else data
        address = f"{subject.address.host}:{subject.address.grpc_port}"
        with grpc.insecure_channel(address) as channel:
            try:
                channel.unary_unary(PREDICT_METHOD)(message, timeout=_TIMEOUT)
            except grpc.RpcError as error:
                return error.code().name
        return "OK"

    return ask


def _tensor(change: Callable[[np.ndarray], np.ndarray]) -> Ask:
    def put(request: predict_pb2.PredictRequest, subject: Subject) -> None:
        images = tf.make_tensor_proto(change(subject.image[None].copy()))
        request.inputs["images"].CopyFrom(images)

    return _grpc(put)


def _sizes(*sizes: int) -> Ask:
    """Sends one image's values as a tensor that says it is of other sizes."""

    def put(request: predict_pb2.PredictRequest, subject: Subject) -> None:
        del subject
        dimensions = request.inputs["images"].tensor_shape.dim
        for dimension, size in zip(dimensions, sizes, strict=False):
            dimension.size = size

    return _grpc(put)


def _grpc_kinds() -> Iterator[Kind]:
    def spec(**fields: object) -> Ask:
        def put(request: predict_pb2.PredictRequest, subject: Subject) -> None:
            del subject
            for name, value in fields.items():
                if name == "version":
                    request.model_spec.version.value = value
                else:
                    setattr(request.model_spec, name, value)

        return _grpc(put)

    refused = "INVALID_ARGUMENT"
    yield Kind("no message", refused, _grpc(lambda request, subject: b"\xff" * 50))
    yield Kind("empty message", refused, _grpc(lambda request, subject: b""))
    yield Kind("no tensor", refused, _grpc(lambda request, subject: request.inputs.clear()))
    yield Kind("wrong dtype: double", refused, _tensor(lambda images: images.astype(float)))
    yield Kind("wrong dtype: 8 bit", refused, _tensor(lambda images: images.astype(np.uint8)))
    yield Kind("wrong shape", refused, _tensor(lambda images: images[:, 1:]))
    yield Kind("wrong rank", refused, _tensor(lambda images: images[0]))
    yield Kind("NaN", refused, _tensor(lambda images: images * np.float32(np.nan)))
    yield Kind("infinity", refused, _tensor(lambda images: images + np.float32(np.inf)))
    yield Kind("values outside [0, 1]", refused, _tensor(lambda images: images - 2))
    yield Kind("tensor that says it is huge", refused, _sizes(2**40))
    yield Kind("tensor of negative size", refused, _sizes(-5))
    yield Kind("tensor with too few values", refused, _sizes(3))
    yield Kind("unknown signature", "FAILED_PRECONDITION", spec(signature_name="x"))
    yield Kind("unknown version", "NOT_FOUND", spec(version=999))
    yield Kind("unknown model", "NOT_FOUND", spec(name="x"))
    huge = _grpc(lambda request, subject: b"x" * _HUGE_BODY)
    yield Kind("100 MB message", "RESOURCE_EXHAUSTED", huge, is_heavy=True)


def all_kinds(has_files: bool) -> list[tuple[str, Kind]]:
    """Returns every kind with the protocol it comes by.

    Args:
        has_files: Whether the model takes files, as its signature `predict_bytes`.
    """
    kinds = [("rest", kind) for kind in _rest_kinds() if has_files or kind.name != "bad base64"]
    if has_files:
        kinds += [("files", kind) for kind in _file_kinds()]
    return kinds + [("grpc", kind) for kind in _grpc_kinds()]
