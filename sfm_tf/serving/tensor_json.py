"""JSON to tensors, as TensorFlow Serving's REST API reads it.

The rules and the wording of the errors are those of `tensorflow_serving/util/json_tensor.cc`, save
that NaN and Infinity, which are no JSON but which it reads, are refused.
"""

import base64
import binascii
import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from sfm_tf.serving.request_errors import Code, RequestError

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
