"""Requests that a server must refuse, each with the answer that is right.

The tests of `rest_api` and `grpc_api` know more of them; here are those that could harm a server.
"""

import base64
import collections
import functools
import http.client
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.wrappers_pb2 import Int64Value
from tensorflow_serving.apis import predict_pb2

PREDICT_METHOD = "/tensorflow.serving.PredictionService/Predict"
TIMEOUT = 120.0
_HUGE_BODY = 100_000_000
_HEAVY = 10  # Requests of a heavy kind, at most.

Generator = np.random.Generator


class Address(NamedTuple):
    """Where a server is."""

    host: str
    rest_port: int
    grpc_port: int


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


def abuse(subject: Subject, total: int) -> bool:
    """Prints a line for each kind of abuse; returns whether all answers were right.

    Args:
        subject: The server.
        total: About how many requests to send.
    """
    kinds = {"rest": _REST_KINDS, "files": _FILE_KINDS, "grpc": _GRPC_KINDS}
    every = [(protocol, kind) for protocol, found in kinds.items() for kind in found]
    light = sum(not kind.is_heavy for _, kind in every)
    heavy_count = min(_HEAVY, math.ceil(total / len(every)))
    light_count = math.ceil((total - heavy_count * (len(every) - light)) / light)
    expected = _good_answer(subject)
    sent = wrong = 0
    print("protocol  kind                              sent  right  expected              goes on")
    for protocol, kind in every:
        count = heavy_count if kind.is_heavy else light_count
        answers = collections.Counter(_ask(subject, kind, number) for number in range(count))
        right, goes_on = answers[kind.expected], _good_answer(subject) == expected
        others = ", ".join(f"{answer}: {times}" for answer, times in answers.items())
        remark = "" if right == count else f"  got {others}"
        print(
            f"{protocol:8}  {kind.name:32}  {count:4}  {right:5}  {kind.expected:20}  "
            f"{'yes' if goes_on else 'NO'}{remark}",
            flush=True,
        )
        sent, wrong = sent + count, wrong + (count - right) + (not goes_on)
    print(f"{sent} requests, {wrong} wrong answers")
    return not wrong


def _ask(subject: Subject, kind: Kind, number: int) -> str:
    try:
        return kind.ask(subject, np.random.default_rng(number))
    except OSError as error:  # The connection broke, which is a wrong answer.
        return type(error).__name__


def _good_answer(subject: Subject) -> tuple[str, object]:
    """Returns the answers to a good request by gRPC and REST."""
    status, answer = _post(subject, ":predict", {"instances": [subject.image.tolist()]})
    class_id = json.loads(answer)["predictions"][0]["class_id"] if status == 200 else None
    return _grpc(lambda request, image: None)(subject, np.random.default_rng()), class_id


def _post(subject: Subject, verb: str, body: object) -> tuple[int, bytes]:
    """Sends bytes, chunks of bytes, or else JSON."""
    is_data = isinstance(body, bytes | Iterator)
    data = body if is_data else json.dumps(body).encode()
    address, path = subject.address, f"/v1/models/{subject.model}{verb}"
    connection = http.client.HTTPConnection(address.host, address.rest_port, timeout=TIMEOUT)
    try:
        connection.request("POST", path, data, encode_chunked=isinstance(body, Iterator))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _body(make: object, verb: str = ":predict") -> Ask:
    """Sends a body, or what a function makes of an image and a generator."""

    def ask(subject: Subject, generator: Generator) -> str:
        body = make(subject.image.copy(), generator) if callable(make) else make
        status, answer = _post(subject, verb, body)
        if status != 200 and "error" not in json.loads(answer):
            return f"{status} without an error message"
        return str(status)

    return ask


def _image(change: Callable[[np.ndarray], np.ndarray]) -> Ask:
    """Sends an image after a change."""
    return _body(lambda image, generator: {"instances": [change(image).tolist()]})


def _pixel(value: object, literal: bytes | None = None) -> Ask:
    """Sends an image with a value, or a number that `json.dumps` would not write, as a pixel."""

    def make(image: np.ndarray, generator: Generator) -> bytes:
        values = image.tolist()
        row = values[generator.integers(len(values))]
        row[generator.integers(len(row))][0] = value
        body = json.dumps({"instances": [values]}).encode()
        return body if literal is None else body.replace(json.dumps(value).encode(), literal)

    return _body(make)


def _chunks(image: np.ndarray, generator: Generator) -> Iterator[bytes]:
    del image, generator
    return (b"x" * 1_000_000 for _ in range(_HUGE_BODY // 1_000_000))


def file_request(*texts: str) -> bytes:
    """Returns the REST body for files, given in base64."""
    files = [{"b64": text} for text in texts]
    return json.dumps({"signature_name": "predict_bytes", "instances": files}).encode()


_ONE = {"instances": [1]}
_REST_KINDS = [
    Kind("empty body", "400", _body(b"")),
    Kind("random bytes", "400", _body(lambda image, generator: generator.bytes(300))),
    Kind("JSON that breaks off", "400", _body(b'{"instances": [[0.1, ')),
    Kind("100,000 nested lists", "400", _body(b'{"instances":' + b"[" * 100_000)),
    Kind("wrong dtype: text", "400", _pixel("red")),
    Kind("wrong dtype: true", "400", _pixel(True)),
    Kind("wrong shape", "400", _image(lambda image: image[1:])),
    Kind("ragged rows", "400", _pixel([0.1, 0.2])),
    Kind("wrong rank: pixels in a row", "400", _image(np.ravel)),
    Kind("NaN", "400", _pixel("@", b"NaN")),
    Kind("number beyond a double", "400", _pixel("@", b"1e999")),
    Kind("number of 5,000 digits", "400", _pixel("@", b"9" * 5000)),
    Kind("value below 0", "400", _pixel(-0.01)),
    Kind("8-bit values", "400", _image(lambda image: np.rint(image * 255) + 2)),
    Kind("batch of 200", "400", _body(lambda image, _: {"instances": [image.tolist()] * 200})),
    Kind("unknown version", "404", _body(_ONE, "/versions/999:predict")),
    Kind("version out of range", "400", _body(_ONE, f"/versions/{2**64}:predict")),
    Kind("unknown model", "404", _body(_ONE, "x:predict")),
    Kind("bad base64", "400", _body(file_request("?!"))),
    Kind("100 MB body", "413", _body(lambda image, generator: b"x" * _HUGE_BODY), is_heavy=True),
    Kind("100 MB body in chunks", "413", _body(_chunks), is_heavy=True),
    Kind(
        "20 million lists", "413", _body(lambda image, _: b"[" + b"[]," * 20_000_000), is_heavy=True
    ),
]


def image_file(image: np.ndarray, extension: str) -> bytes:
    """Returns an image in [0, 1] as a file of the kind that `extension` names."""
    levels = np.rint(image[..., ::-1] * 255).astype(np.uint8)
    return cv2.imencode(extension, levels)[1].tobytes()


def _random_file(generator: Generator, extension: str) -> bytes:
    return image_file(generator.random((32, 32, 3)), extension)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def _png(height: int, width: int, rows: bytes, *others: bytes) -> bytes:
    """Returns a grey PNG file with the given compressed rows, whatever its header says."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data, end = _chunk(b"IDAT", rows), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join((header, *others, data, end))


def _cut(data: bytes, generator: Generator) -> bytes:
    return data[: int(generator.integers(1, len(data) // 2))]


def _damaged_png(generator: Generator) -> bytes:
    data = bytearray(_random_file(generator, ".png"))
    for place in generator.integers(60, len(data) - 20, 20):
        data[place] ^= 0xFF
    return bytes(data)


def _jpeg_that_says_it_is_huge(generator: Generator) -> bytes:
    data = bytearray(_random_file(generator, ".jpg"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


@functools.cache
def _text_bomb() -> bytes:
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8_000_000), 9))
    return _png(8, 8, zlib.compress(bytes(9 * 8)), *[text] * 40)


@functools.cache
def _zeros_png(side: int) -> bytes:
    """Returns a grey PNG of zeros without ever holding its pixels."""
    compressor = zlib.compressobj(9)
    rows = b"".join(compressor.compress(bytes(side + 1)) for _ in range(side))
    return _png(side, side, rows + compressor.flush())


def _file(make: Callable[[Generator], bytes] | bytes) -> Ask:
    """Sends a file between two good ones, which must be answered as if it were not there."""

    def ask(subject: Subject, generator: Generator) -> str:
        good = image_file(subject.image, ".png")
        files = [good, make if isinstance(make, bytes) else make(generator), good]
        body = file_request(*[base64.b64encode(file).decode() for file in files])
        status, answer = _post(subject, ":predict", body)
        if status != 200:
            return str(status)
        first, hostile, last = json.loads(answer)["predictions"]
        if first["status"] or last["status"] or first["class_id"] != last["class_id"]:
            return "200, but its neighbours failed"
        if not np.isfinite(hostile["logits"] + hostile["probabilities"]).all():
            return "200, but with NaN"
        return f"200, status {hostile['status']}"

    return ask


_UNDECODABLE, _TOO_LARGE = "200, status 1", "200, status 2"
_FILE_KINDS = [
    Kind("empty file", _UNDECODABLE, _file(b"")),
    Kind("random bytes", _UNDECODABLE, _file(lambda generator: generator.bytes(500))),
    Kind("web page", _UNDECODABLE, _file(b"<!doctype html><title>404</title>" * 10)),
    Kind("truncated PNG", _UNDECODABLE, _file(lambda g: _cut(_random_file(g, ".png"), g))),
    Kind("truncated JPEG", _UNDECODABLE, _file(lambda g: _cut(_random_file(g, ".jpg"), g))),
    Kind("damaged PNG", _UNDECODABLE, _file(_damaged_png)),
    Kind("PNG with too few rows", _UNDECODABLE, _file(_png(64, 64, zlib.compress(bytes(195))))),
    Kind("PNG of 0 by 0", _UNDECODABLE, _file(_png(0, 0, zlib.compress(b"")))),
    Kind("320 MB of text in a PNG", _UNDECODABLE, _file(lambda generator: _text_bomb())),
    Kind(
        "PNG that says it is huge",
        _TOO_LARGE,
        _file(_png(50_000, 50_000, zlib.compress(bytes(100)))),
    ),
    Kind("PNG of 64 MB of zeros", _TOO_LARGE, _file(lambda generator: _zeros_png(8_000))),
    Kind("JPEG that says it is huge", _TOO_LARGE, _file(_jpeg_that_says_it_is_huge)),
]


def predict_request(image: np.ndarray, model: str) -> predict_pb2.PredictRequest:
    """Returns the gRPC request for an image."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(image[None]))
    return request


def _grpc(change: Callable[[predict_pb2.PredictRequest, np.ndarray], bytes | None]) -> Ask:
    """Sends a request after a change, or the bytes that it returns."""

    def ask(subject: Subject, generator: Generator) -> str:
        del generator
        request = predict_request(subject.image, subject.model)
        data = change(request, subject.image[None].copy())
        message = request.SerializeToString() if data is None else data
        address = f"{subject.address.host}:{subject.address.grpc_port}"
        with grpc.insecure_channel(address) as channel:
            try:
                channel.unary_unary(PREDICT_METHOD)(message, timeout=TIMEOUT)
            except grpc.RpcError as error:
                return error.code().name
        return "OK"

    return ask


def _tensor(change: Callable[[np.ndarray], np.ndarray]) -> Ask:
    def put(request: predict_pb2.PredictRequest, images: np.ndarray) -> None:
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(change(images)))

    return _grpc(put)


def _count(size: int) -> Ask:
    """Sends one image's values as a tensor that says it holds another number of images."""

    def put(request: predict_pb2.PredictRequest, images: np.ndarray) -> None:
        request.inputs["images"].tensor_shape.dim[0].size = size

    return _grpc(put)


def _model(change: Callable[[object], None]) -> Ask:
    return _grpc(lambda request, images: change(request.model_spec))


_REFUSED = "INVALID_ARGUMENT"
_GRPC_KINDS = [
    Kind("no message", _REFUSED, _grpc(lambda request, images: b"\xff" * 50)),
    Kind("no tensor", _REFUSED, _grpc(lambda request, images: request.inputs.clear())),
    Kind("wrong dtype: double", _REFUSED, _tensor(lambda images: images.astype(float))),
    Kind("wrong shape", _REFUSED, _tensor(lambda images: images[:, 1:])),
    Kind("NaN", _REFUSED, _tensor(lambda images: images * np.float32(np.nan))),
    Kind("values outside [0, 1]", _REFUSED, _tensor(lambda images: images - 2)),
    Kind("tensor that says it is huge", _REFUSED, _count(2**40)),
    Kind("tensor of negative size", _REFUSED, _count(-5)),
    Kind("tensor with too few values", _REFUSED, _count(3)),
    Kind(
        "unknown version",
        "NOT_FOUND",
        _model(lambda spec: spec.version.MergeFrom(Int64Value(value=999))),
    ),
    Kind("unknown model", "NOT_FOUND", _model(lambda spec: setattr(spec, "name", "x"))),
    Kind(
        "100 MB message",
        "RESOURCE_EXHAUSTED",
        _grpc(lambda request, images: b"x" * _HUGE_BODY),
        is_heavy=True,
    ),
]
