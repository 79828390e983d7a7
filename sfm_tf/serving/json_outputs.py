"""Tensors to JSON, as TensorFlow Serving's REST API writes it.

The rules are those of `tensorflow_serving/util/json_tensor.cc`: strings are text, or base64 where
the tensor's name ends with `_bytes`. Of text that is no UTF-8 it makes what no client can parse;
here that is base64, too.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from sfm_tf.serving.request_errors import Code, RequestError


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
