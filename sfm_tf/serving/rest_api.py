"""TensorFlow Serving's REST routes, as one function from a request to an answer.

    GET  /v1/models/NAME[/versions/V]            the versions and their states
    GET  /v1/models/NAME[/versions/V]/metadata   the signatures
    POST /v1/models/NAME[/versions/V]:predict    tensors in, tensors out

Whatever speaks HTTP calls `RestApi.answer`. Routes and statuses are those of TensorFlow Serving's
`http_rest_api_handler`; 413 for a body over the limit is this server's own.
"""

import base64
import binascii
import dataclasses
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format

from sfm_tf.serving.prediction_service import (
    Code,
    Limits,
    ModelRepository,
    Outputs,
    Prediction,
    RequestError,
    ServedModel,
    make_prediction,
)


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
        raise RequestError(Code.INVALID_ARGUMENT, "Tensors have inconsistent batch sizes")
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


_FLOATS = frozenset({tf.float32, tf.float64})
_INTEGERS = frozenset(
    {tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64}
)
_PYTHON_TYPES: Mapping[tf.DType, frozenset[type]] = {
    **dict.fromkeys(_FLOATS, frozenset({int, float})),
    **dict.fromkeys(_INTEGERS, frozenset({int})),
    tf.bool: frozenset({bool}),
    tf.string: frozenset({str, dict}),
}
"""What Python's parser may make of an element of a tensor."""

_JSON_TYPES = {
    type(None): "Null",
    bool: "Bool",
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}
_SHOWN = 100  # Characters of a refused value that its error repeats.


@dataclasses.dataclass(frozen=True)
class JsonRequest:
    """The body of a `:predict` request.

    Attributes:
        signature_name: The signature it names; None for the default.
        by_row: Whether it is a list of `instances` rather than of whole `inputs`.
        value: What stands under that key.
    """

    signature_name: str | None
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
    document = _parse(body, most_lists)
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _invalid(
            f"JSON Value: {_shown(name)} not formatted correctly. 'signature_name' key must be a "
            "string value."
        )
    keys = [key for key in ("instances", "inputs") if key in document]
    if not keys:
        raise _invalid("Missing 'inputs' or 'instances' key")
    if len(keys) == 2:
        raise _invalid(
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
        )
    value, by_row = document[keys[0]], keys[0] == "instances"
    if by_row and not isinstance(value, list):
        raise _invalid("Excepting 'instances' to be an list/array")
    if by_row and not value:
        raise _invalid("No values in 'instances' array")
    return JsonRequest(name or None, by_row, value)


def _parse(body: bytes, most_lists: int) -> dict[str, Any]:
    if not body:
        raise _invalid("JSON Parse error: The document is empty")
    if body.count(b"[") + body.count(b"{") > most_lists:
        raise RequestError(Code.TOO_LARGE, f"JSON with more than {most_lists} lists and objects")
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _invalid("JSON Parse error: Lists are nested too deeply.") from error
    except json.JSONDecodeError as error:
        raise _invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except ValueError as error:  # No UTF-8, or a number of thousands of digits.
        raise _invalid(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise _invalid(f"JSON Value: {_shown(document)} Is not object")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number; expected finite values.")


def read_inputs(request: JsonRequest, specs: Mapping[str, tf.TensorSpec]) -> dict[str, np.ndarray]:
    """Makes the tensors of a request.

    Args:
        request: The request.
        specs: What the signature takes, by name; their shapes are not looked at.

    Returns:
        Tensors by name, of the types that the signature takes; strings as object arrays of bytes.

    Raises:
        RequestError: If its value is none for such tensors.
    """
    if request.by_row:
        return _read_rows(request.value, specs)
    return _read_columns(request.value, specs)


def _read_rows(rows: list[Any], specs: Mapping[str, tf.TensorSpec]) -> dict[str, np.ndarray]:
    by_name = _is_named(rows[0])
    if not by_name and len(specs) != 1:
        raise _invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    for place, row in enumerate(rows):
        if _is_named(row) != by_name:
            found = "object but got list" if by_name else "value/list but got object"
            raise _invalid(f"Expecting {found} at item {place} of input list")
        if by_name and row.keys() != specs.keys():
            raise _invalid(
                f"Failed to process element: {place} of 'instances' list. JSON object: "
                f"{_shown(row)} keys must be equal to: {','.join(sorted(specs))}"
            )
    if by_name:
        columns = {name: [row[name] for row in rows] for name in specs}
    else:
        columns = dict.fromkeys(specs, rows)
    return {name: _read_column(rows, specs[name]) for name, rows in columns.items()}


def _read_column(rows: list[Any], spec: tf.TensorSpec) -> np.ndarray:
    try:
        return _read_tensor(rows, spec.dtype)
    except RequestError as error:
        # Only now that it matters, which row it is.
        raise _row_error(rows, spec) or error from None


def _row_error(rows: list[Any], spec: tf.TensorSpec) -> RequestError | None:
    first_shape: tuple[int, ...] | None = None
    for place, row in enumerate(rows):
        where = f"Failed to process element: {place} of 'instances' list. Error: "
        try:
            shape = _read_tensor(row, spec.dtype).shape
        except RequestError as error:
            return RequestError(error.code, where + str(error))
        first_shape = shape if first_shape is None else first_shape
        if shape != first_shape:
            shapes = [",".join(map(str, sizes)) for sizes in (first_shape, shape)]
            return _invalid(f"{where}Expecting shape [{shapes[0]}] but got: [{shapes[1]}]")
    return None


def _read_columns(value: Any, specs: Mapping[str, tf.TensorSpec]) -> dict[str, np.ndarray]:
    if not _is_named(value):
        if len(specs) != 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        return {name: _read_tensor(value, spec.dtype) for name, spec in specs.items()}
    for name in specs:
        if name not in value:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _read_tensor(value[name], spec.dtype) for name, spec in specs.items()}


def _is_named(value: Any) -> bool:
    """Whether a value is an object of named tensors rather than one of base64."""
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _read_tensor(value: Any, dtype: tf.DType) -> np.ndarray:
    """Makes a tensor of nested lists, level by level: no recursion, and a few passes in C each."""
    if dtype not in _PYTHON_TYPES:
        message = f"Conversion of JSON Value: {_shown(value)} to type: {dtype.name}"
        raise RequestError(Code.UNIMPLEMENTED, message)
    shape: list[int] = []
    values = [value]
    while values and isinstance(values[0], list):
        _check_level(values, len(shape))
        shape.append(len(values[0]))
        values = list(itertools.chain.from_iterable(values))
    return _convert(values, dtype, len(shape)).reshape(shape)


def _check_level(values: list[Any], level: int) -> None:
    if set(map(type, values)) != {list}:
        found = next(value for value in values if not isinstance(value, list))
        raise _invalid(
            f"JSON Value: {_shown(found)} found at incorrect level: {level + 1} in the JSON DOM. "
            f"Expected at level: {level + 2}"
        )
    size = len(values[0])
    for found in set(map(len, values)) - {size}:
        raise _invalid(
            f"Encountered list at unexpected size: {found} at level: {level} expected size: {size}"
        )


def _convert(values: list[Any], dtype: tf.DType, level: int) -> np.ndarray:
    types = set(map(type, values))
    if list in types:
        raise _invalid(f"Encountered list at unexpected level: {level} expected < {level}")
    if types - _PYTHON_TYPES[dtype]:
        found = next(value for value in values if type(value) not in _PYTHON_TYPES[dtype])
        raise _type_error(found, dtype)
    if dtype == tf.string:
        array = np.empty(len(values), dtype=object)
        array[:] = [_read_bytes(value) for value in values]
        return array
    if dtype in _FLOATS:
        return _convert_floats(values, dtype)
    try:
        return np.array(values, dtype.as_numpy_dtype)
    except OverflowError as error:
        raise _type_error(max(values, key=abs), dtype) from error


def _convert_floats(values: list[Any], dtype: tf.DType) -> np.ndarray:
    try:
        wide = np.array(values, np.float64)
        with np.errstate(over="ignore"):
            array = wide.astype(dtype.as_numpy_dtype)
    except OverflowError:
        wide = array = np.array([np.inf])
    if not np.isfinite(array).all():
        found = values[int(np.argmax(~np.isfinite(array)))] if len(array) == len(values) else ""
        name = {tf.float32: "float", tf.float64: "double"}[dtype]
        raise _invalid(
            f"Cannot convert JSON value: {_shown(found)} to {name} without loss of precision."
        )
    return array


def _read_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"JSON Parse error: {_shown(value)} holds half a surrogate pair."
            raise _invalid(message) from error
    if not _is_base64(value):
        raise _invalid(f"JSON Value: {_shown(value)} not formatted correctly for base64 data")
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid("Unable to base64 decode") from error


def _type_error(value: Any, dtype: tf.DType) -> RequestError:
    name = {tf.float32: "float", tf.float64: "double"}.get(dtype, dtype.name)
    kind = _JSON_TYPES[type(value)]
    return _invalid(f"JSON Value: {_shown(value)} Type: {kind} is not of expected type: {name}")


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        # Writing a whole refused document, only to cut it off, would cost as much as reading it.
        return f"<{_JSON_TYPES[type(value)]} of {len(value)}>"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, message)


DEFAULT_SIGNATURE = "serving_default"

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_ROUTES = (
    ("POST", re.compile(_MODEL + ":(?P<verb>predict|classify|regress)")),
    ("GET", re.compile(_MODEL + "(?:/(?P<verb>metadata))?")),
)
_LARGEST_VERSION = 2**63 - 1
_DISCARDED = 4  # Times the limit that is read of a body, so that its sender stops to read why.

Predict = Callable[[Prediction], Awaitable[Outputs]]
"""Runs a checked request; raises `RequestError` where the model fails on it."""


@dataclasses.dataclass(frozen=True)
class RestAnswer:
    """What HTTP sends back: a status, and a JSON document, empty where there is no such place."""

    status: int
    body: bytes


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
    limits: Limits

    async def answer(
        self, method: str, path: str, length: int | None, chunks: AsyncIterator[bytes]
    ) -> RestAnswer:
        """Answers a request, whatever it is.

        Args:
            method: HTTP's method, in capitals.
            path: Path of the URL, without percent signs and query.
            length: Size of the body where the client declares it.
            chunks: The body.

        Returns:
            The answer; an error is `{"error": "..."}` as TensorFlow Serving writes it.
        """
        if not path.startswith("/v1/"):
            return RestAnswer(404, b"")
        try:
            return RestAnswer(200, await self._answer(method, path, length, chunks))
        except RequestError as error:
            return _refuse(error.code.http, str(error))
        except Exception:  # The outermost frame: the client is told, and the server goes on.
            logging.getLogger(__name__).exception("%s %s failed", method, path)
            return _refuse(Code.INTERNAL.http, "Internal error; the server's log has the details.")

    async def _answer(
        self, method: str, path: str, length: int | None, chunks: AsyncIterator[bytes]
    ) -> bytes:
        body = await read_body(length, chunks, self.limits.body_bytes)
        if method == "GET" and path == "/v1/models":
            raise RequestError(Code.INVALID_ARGUMENT, "Missing model name in request.")
        for route_method, pattern in _ROUTES:
            match = pattern.fullmatch(path)
            if match and method == route_method:
                return await self._answer_route(match, body)
        raise RequestError(Code.INVALID_ARGUMENT, f"Malformed request: {method} {path}")

    async def _answer_route(self, match: re.Match[str], body: bytes) -> bytes:
        name, verb = match["name"], match["verb"]
        if match["label"]:
            message = f"Unrecognized servable version label: {match['label']}"
            raise RequestError(Code.INVALID_ARGUMENT, message)
        version = _read_version(match["version"])
        if verb is None:
            return self._status(name, version)
        if verb == "metadata":
            return _metadata(self.repository.find(name, version))
        if verb == "predict":
            return await self._predict(name, version, body)
        raise RequestError(Code.UNIMPLEMENTED, f"This server does not {verb}; use :predict.")

    def _status(self, name: str, version: int | None) -> bytes:
        statuses = [
            {
                "version": str(status.version),
                "state": status.state,
                "status": {
                    "error_code": "UNKNOWN" if status.error else "OK",
                    "error_message": status.error,
                },
            }
            for status in self.repository.statuses(name, version)
        ]
        return _dump({"model_version_status": statuses})

    async def _predict(self, name: str, version: int | None, body: bytes) -> bytes:
        request = read_request(body, self.limits.json_lists)
        model = self.repository.find(name, version)
        signature_name = request.signature_name or DEFAULT_SIGNATURE
        if signature_name not in model.signatures:
            message = f'Serving signature name: "{signature_name}" not found in signature def'
            raise RequestError(Code.INVALID_ARGUMENT, message)
        signature = model.signatures[signature_name]
        inputs = read_inputs(request, signature.inputs)
        outputs = await self.predict(make_prediction(model, signature, inputs, self.limits))
        return write_outputs(outputs, request.by_row)


async def read_body(length: int | None, chunks: AsyncIterator[bytes], limit: int) -> bytes:
    """Reads a body that is not too large.

    A body over the limit is read on for a while, without being kept: a client that is still sending
    when the connection closes would see that instead of the answer.

    Args:
        length: Its size where the client declares it.
        chunks: The body.
        limit: Most bytes of it.

    Raises:
        RequestError: If it is larger.
    """
    kept: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if max(size, length or 0) <= limit:
            kept.append(chunk)
        else:
            kept.clear()
            if size > _DISCARDED * limit:
                break
    if max(size, length or 0) > limit:
        message = f"Request body is larger than the limit of {limit} bytes"
        raise RequestError(Code.TOO_LARGE, message)
    return b"".join(kept)


def _read_version(text: str | None) -> int | None:
    if text is None:
        return None
    # Python reads digits of any script and refuses thousands of them.
    version = int(text) if text.isascii() and len(text) <= 19 else _LARGEST_VERSION + 1
    if version > _LARGEST_VERSION:
        message = f"Failed to convert version: {text} to numeric."
        raise RequestError(Code.INVALID_ARGUMENT, message)
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


def _refuse(status: int, message: str) -> RestAnswer:
    return RestAnswer(status, _dump({"error": message}))


def _dump(value: object) -> bytes:
    return json.dumps(value, indent=1).encode("ascii")
