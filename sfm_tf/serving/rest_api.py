"""TensorFlow Serving's REST routes, as one function from a request to an answer.

    GET  /v1/models/NAME[/versions/V]            the versions and their states
    GET  /v1/models/NAME[/versions/V]/metadata   the signatures
    POST /v1/models/NAME[/versions/V]:predict    tensors in, tensors out

Whatever speaks HTTP calls `RestApi.answer`. Routes and statuses are those of TensorFlow Serving's
`http_rest_api_handler`; 413 for a body over the limit is this server's own.
"""

import dataclasses
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable

from google.protobuf import json_format

from sfm_tf.serving.json_outputs import write_outputs
from sfm_tf.serving.model_repository import ModelRepository, ServedModel
from sfm_tf.serving.prediction_service import Limits, Outputs, Prediction, make_prediction
from sfm_tf.serving.request_errors import Code, RequestError
from sfm_tf.serving.tensor_json import read_inputs, read_request

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
