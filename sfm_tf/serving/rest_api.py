"""TensorFlow Serving's REST routes, as one function from a request to an answer.

    GET  /v1/models/NAME[/versions/V]            the versions and their states
    GET  /v1/models/NAME[/versions/V]/metadata   the signatures
    POST /v1/models/NAME[/versions/V]:predict    tensors in, tensors out

Whatever speaks HTTP calls `RestApi.answer`. Routes, formats and statuses are those of TensorFlow
Serving's `http_rest_api_handler`; its Classify, Regress and version labels are not here. 413 for a
body over the limit, 415 for one packed in an unknown way, the coding deflate, and the words of most
errors, are this server's own.
"""

import base64
import binascii
import dataclasses
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format

from sfm_tf.serving.content_coding import Decoder, open_decoder
from sfm_tf.serving.prediction_service import (
    Code,
    ModelRepository,
    Predict,
    RequestError,
    RequestLimits,
    ServedModel,
    make_prediction,
)

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+))?"
_ROUTES = (
    ("POST", re.compile(_MODEL + "(?P<verb>:predict)")),
    ("GET", re.compile(_MODEL + "(?P<verb>/metadata)?")),
)
_LARGEST_VERSION = 2**63 - 1
_DISCARDED = 4  # Times the limit that is read of a body, so that its sender stops to read why.


@dataclasses.dataclass(frozen=True)
class RestApi:
    """Answers REST requests.

    Attributes:
        repository: The served models.
        predict: Runs a checked request.
        limits: What one request may ask for.
    """

    repository: ModelRepository
    predict: Predict
    limits: RequestLimits

    async def answer(
        self,
        method: str,
        path: str,
        length: int | None,
        chunks: AsyncIterator[bytes],
        coding: str = "",
    ) -> tuple[int, bytes]:
        """Answers a request, whatever it is.

        Args:
            method: HTTP's method, in capitals.
            path: Path of the URL, without percent signs and query.
            length: Size of the body where the client declares it.
            chunks: The body.
            coding: How the body is packed: the header Content-Encoding.

        Returns:
            HTTP's status and a JSON document, `{"error": "..."}` for an error; the document is
            empty where there is no such place.
        """
        if not path.startswith("/v1/"):
            return 404, b""
        try:
            return 200, await self._answer(method, path, length, chunks, coding)
        except RequestError as error:
            return error.code.http, _dump({"error": str(error)})
        except Exception:  # The outermost frame: the client is told, and the server goes on.
            logging.getLogger(__name__).exception("%s %s failed", method, path)
            text = "Internal error; the server's log has the details."
            return Code.INTERNAL.http, _dump({"error": text})

    async def _answer(
        self,
        method: str,
        path: str,
        length: int | None,
        chunks: AsyncIterator[bytes],
        coding: str,
    ) -> bytes:
        body = await read_body(length, chunks, self.limits.body_bytes, open_decoder(coding))
        for route_method, pattern in _ROUTES:
            match = pattern.fullmatch(path)
            if match and method == route_method:
                name, version = match["name"], _read_version(match["version"])
                if match["verb"] == ":predict":
                    return await self._predict(name, version, body)
                if match["verb"] == "/metadata":
                    return _metadata(self.repository.find(name, version))
                return self._status(name, version)
        raise _invalid(f"Malformed request: {method} {path}")

    def _status(self, name: str, version: int | None) -> bytes:
        statuses = [
            {
                "version": str(status.version),
                "state": status.state,
                "status": {
                    "error_code": "UNKNOWN" if status.error_message else "OK",
                    "error_message": status.error_message,
                },
            }
            for status in self.repository.statuses(name, version)
        ]
        return _dump({"model_version_status": statuses})

    async def _predict(self, name: str, version: int | None, body: bytes) -> bytes:
        request = read_request(body, self.limits.json_lists)
        model = self.repository.find(name, version)
        signature = model.signature(request.signature_name)
        inputs = read_inputs(request, signature.inputs)
        outputs = await self.predict(make_prediction(model, signature, inputs, self.limits))
        return write_outputs(outputs, request.by_row)


async def read_body(
    length: int | None, chunks: AsyncIterator[bytes], limit: int, decoder: Decoder
) -> bytes:
    """Reads a body that is not too large, neither as it is sent nor unpacked.

    A body over the limit is read on for a while, without being kept: a client that is still sending
    when the connection closes would see that instead of the answer.

    Args:
        length: Its size where the client declares it.
        chunks: The body.
        limit: Most bytes of it.
        decoder: Unpacks it.

    Raises:
        RequestError: If it is larger, or damaged.
    """
    kept = bytearray()
    sent = 0
    is_larger = (length or 0) > limit
    async for chunk in chunks:
        sent += len(chunk)
        is_larger = is_larger or sent > limit
        for piece in () if is_larger else decoder.decode(chunk):
            kept += piece
            if len(kept) > limit:
                is_larger = True
                break
        if is_larger:
            kept.clear()
            if sent > _DISCARDED * limit:
                break
    if is_larger:
        message = f"Request body is larger than the limit of {limit} bytes"
        raise RequestError(Code.TOO_LARGE, message)
    decoder.finish()
    return bytes(kept)


def _read_version(text: str | None) -> int | None:
    if text is None:
        return None
    # Python reads digits of any script and refuses thousands of them.
    version = int(text) if text.isascii() and len(text) <= 19 else _LARGEST_VERSION + 1
    if version > _LARGEST_VERSION:
        raise _invalid(f"Failed to convert version: {text} to numeric.")
    return version


def _metadata(model: ServedModel) -> bytes:
    signatures = {
        name: json_format.MessageToDict(
            definition,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        for name, definition in model.signature_defs.items()
    }
    spec = {"name": model.name, "signature_name": "", "version": str(model.version)}
    return _dump({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})


def _dump(value: object) -> bytes:
    return json.dumps(value, indent=1).encode("ascii")


@dataclasses.dataclass(frozen=True)
class JsonRequest:
    """The body of a `:predict` request.

    Attributes:
        signature_name: The signature it names; empty for the default.
        by_row: Whether it is a list of `instances` rather than of whole `inputs`.
        value: What stands under that key.
    """

    signature_name: str
    by_row: bool
    value: Any


def read_request(body: bytes, most_lists: int) -> JsonRequest:
    """Parses the body of a `:predict` request.

    Args:
        body: JSON in UTF-8.
        most_lists: Lists and objects that it may hold.

    Raises:
        RequestError: If it is no such request.
    """
    if body.count(b"[") + body.count(b"{") > most_lists:
        raise RequestError(Code.TOO_LARGE, f"JSON with more than {most_lists} lists and objects")
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _invalid("JSON Parse error: Lists are nested too deeply.") from error
    except ValueError as error:  # No JSON, no UTF-8, or a number of thousands of digits.
        raise _invalid(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise _invalid("The JSON document is not an object.")
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _invalid("'signature_name' key must be a string value.")
    keys = [key for key in ("instances", "inputs") if key in document]
    if len(keys) != 1:
        raise _invalid("Expected either an 'instances' or an 'inputs' key.")
    value, by_row = document[keys[0]], keys[0] == "instances"
    if by_row and not (isinstance(value, list) and value):
        raise _invalid("Expected 'instances' to be a list with at least one value.")
    return JsonRequest(name, by_row, value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number; expected finite values.")


def read_inputs(request: JsonRequest, specs: Mapping[str, tf.TensorSpec]) -> dict[str, np.ndarray]:
    """Makes the tensors of a request.

    Args:
        request: The request.
        specs: What the signature takes, by name; their shapes are not looked at.

    Returns:
        Tensors by name, of the types that the signature takes; strings as object arrays of bytes.
        Numbers too large for a float become infinite.

    Raises:
        RequestError: If its value is none for such tensors.
    """
    columns = _columns(request, specs)
    return {name: _read_tensor(name, columns[name], spec.dtype) for name, spec in specs.items()}


def _columns(request: JsonRequest, specs: Mapping[str, tf.TensorSpec]) -> Mapping[str, Any]:
    """Returns the values of each input; a single input need not be named."""
    value = request.value
    if not _is_named(value[0] if request.by_row else value):
        if len(specs) != 1:
            raise _invalid(f"Expected objects that name the inputs {', '.join(sorted(specs))}.")
        return dict.fromkeys(specs, value)
    rows = value if request.by_row else [value]
    for row in rows:
        if not (isinstance(row, dict) and row.keys() >= specs.keys()):
            raise _invalid(f"Expected values named {', '.join(sorted(specs))} in each object.")
    if request.by_row:
        return {name: [row[name] for row in rows] for name in specs}
    return value


def _is_named(value: Any) -> bool:
    """Whether a value is an object of named tensors rather than one of base64."""
    return isinstance(value, dict) and value.keys() != {"b64"}


_PYTHON_TYPES: Mapping[str, frozenset[type]] = {
    "f": frozenset({int, float}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "b": frozenset({bool}),
    "O": frozenset({str, dict}),
}
"""What Python's parser may make of an element of a tensor, by the kind of NumPy's dtype."""


def _read_tensor(name: str, value: Any, dtype: tf.DType) -> np.ndarray:
    """Makes a tensor of nested lists, level by level: no recursion, and a few passes in C each."""
    numpy_type = np.dtype(dtype.as_numpy_dtype)
    if numpy_type.kind not in _PYTHON_TYPES:
        text = f"Input {name} is of type {dtype.name}, which JSON does not have; use gRPC."
        raise RequestError(Code.UNIMPLEMENTED, text)
    shape: list[int] = []
    values = [value]
    while values and isinstance(values[0], list):
        if set(map(type, values)) != {list} or len(set(map(len, values))) != 1:
            raise _invalid(f"Input {name} has lists of different lengths at level {len(shape)}.")
        shape.append(len(values[0]))
        values = list(itertools.chain.from_iterable(values))
    if set(map(type, values)) - _PYTHON_TYPES[numpy_type.kind]:
        raise _invalid(f"Input {name} has a value that is not of expected type: {dtype.name}")
    if dtype == tf.string:
        array = np.empty(len(values), dtype=object)
        array[:] = [_read_bytes(name, each) for each in values]
        return array.reshape(shape)
    try:
        with np.errstate(over="ignore"):
            return np.array(values, numpy_type).reshape(shape)
    except OverflowError as error:
        raise _invalid(f"Input {name} has a value too large for {dtype.name}.") from error


def _read_bytes(name: str, value: str | dict[str, Any]) -> bytes:
    try:
        if isinstance(value, str):
            return value.encode("utf-8")
        text = value["b64"].rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (UnicodeEncodeError, LookupError, AttributeError, ValueError, binascii.Error) as error:
        raise _invalid(f"Input {name} has a value that is neither text nor base64.") from error


def write_outputs(outputs: Mapping[str, np.ndarray], by_row: bool) -> bytes:
    """Writes the answer to a `:predict` request.

    A float32 is written with the digits of the double of the same value, so it reads back exactly.

    Args:
        outputs: Tensors by name; strings as object arrays of bytes.
        by_row: Whether to write `predictions`, a list with one entry per example, rather than
            `outputs`, the whole tensors.

    Returns:
        JSON. Entries, or `outputs`, are bare values where there is a single tensor.

    Raises:
        RequestError: If rows are asked for and the tensors differ in their first dimension.
    """
    sizes = {values.shape[:1] for values in outputs.values()}
    if by_row and (len(sizes) != 1 or () in sizes):
        raise _invalid("Tensors have inconsistent batch sizes")
    columns = {name: _json_values(name, values) for name, values in sorted(outputs.items())}
    if len(columns) == 1:
        answer = next(iter(columns.values()))
    elif by_row:
        answer = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
    else:
        answer = columns
    return json.dumps({"predictions" if by_row else "outputs": answer}).encode("ascii")


def _json_values(name: str, values: np.ndarray) -> Any:
    if values.dtype != object:
        return values.tolist()
    written = np.empty(values.size, dtype=object)
    for place, value in enumerate(values.ravel()):
        written[place] = _write_bytes(value, is_binary=name.endswith("_bytes"))
    return written.reshape(values.shape).tolist()


def _write_bytes(value: bytes, is_binary: bool) -> str | dict[str, str]:
    if not is_binary:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return {"b64": base64.b64encode(value).decode("ascii")}


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, message)
