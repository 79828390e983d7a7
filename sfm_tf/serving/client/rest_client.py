"""A client of TensorFlow Serving's REST interface; needs NumPy and nothing else.

The interface: https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import binascii
import json
import re
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.answers import Outputs
from sfm_tf.serving.client.http_exchange import HttpReply, check_server, exchange
from sfm_tf.serving.client.model_client import ModelClient
from sfm_tf.serving.client.retries import DEFAULT_POLICY, RetryPolicy, with_retries
from sfm_tf.serving.client.server_error import ServerError, one_line

RETRYABLE = frozenset({429, 502, 503, 504})
"""HTTP statuses after which the same request can succeed later."""

_ERROR = re.compile(r'\s*\{\s*"error"\s*:\s*"(.*)"\s*\}\s*', re.DOTALL)


class RestClient(ModelClient):
    """Asks a served model over HTTP.

    client = RestClient("http://127.0.0.1:8501", "sfm_defended")
    answers = client.classify_files(["cat.png", "dog.jpg"])
    """

    def __init__(
        self,
        server: str,
        model_name: str,
        version: int | None = None,
        batch_size: int = 32,
        retry_policy: RetryPolicy = DEFAULT_POLICY,
    ) -> None:
        """Keeps the settings; nothing is sent.

        Args:
            server: Such as "http://127.0.0.1:8501".
            model_name: Name the server knows the model by.
            version: Version asked for; None for the server's latest.
            batch_size: Most images in one request.
            retry_policy: How often and how long a request is tried.

        Raises:
            SfmError: If one of them is not usable.
        """
        super().__init__(check_server(server), model_name, version, batch_size, retry_policy)
        suffix = "" if version is None else f"/versions/{version}"
        name = urllib.parse.quote(model_name, safe="")
        self._model = f"{self.server}/v1/models/{name}{suffix}"

    def _predict(
        self, signature_name: str, input_name: str, values: np.ndarray | Sequence[bytes]
    ) -> Outputs:
        # With a single input, rows are its bare values and need no name.
        request = {"signature_name": signature_name, "instances": _instances(values)}
        body = json.dumps(request, allow_nan=False).encode("ascii")
        return _columns(self._send("POST", f"{self._model}:predict", body), len(values))

    def _get_status(self) -> Any:
        return self._send("GET", self._model)

    def _get_metadata(self) -> Any:
        return self._send("GET", f"{self._model}/metadata")

    def _send(self, method: str, url: str, body: bytes | None = None) -> Any:
        def attempt(seconds: float) -> HttpReply:
            reply = exchange(method, url, body, seconds)
            if reply.status != 200:
                raise self._error(reply)
            return reply

        return _parse(with_retries(attempt, self.retry_policy).body)

    def _error(self, reply: HttpReply) -> ServerError:
        status = one_line(f"{reply.status} {reply.reason}")
        return ServerError(
            f"The server {self.server} answered {status}: {_error_message(reply.body)}",
            code=str(reply.status),
            retryable=reply.status in RETRYABLE,
            wait_seconds=reply.retry_after,
        )


def _instances(values: np.ndarray | Sequence[bytes]) -> list[Any]:
    if isinstance(values, np.ndarray):
        return values.tolist()
    return [{"b64": base64.b64encode(value).decode("ascii")} for value in values]


def _columns(answer: Any, count: int) -> Outputs:
    """Returns the outputs by name in an answer in row format."""
    rows = answer.get("predictions") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _malformed("no list of objects under 'predictions'")
    if len(rows) != count:
        raise _malformed(f"{len(rows)} predictions for {count} images")
    names = rows[0].keys()
    if any(row.keys() != names for row in rows):
        raise _malformed("predictions with different outputs")
    return {name: [_decoded(row[name]) for row in rows] for name in names}


def _decoded(value: Any) -> Any:
    if not (isinstance(value, dict) and value.keys() == {"b64"}):
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise _malformed("bytes that are not base64") from error


def _parse(body: bytes) -> Any:
    try:
        # Bytes that are no UTF-8 can only be inside a string, which is then of no use, alone.
        return json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise _malformed(f"no JSON but {one_line(repr(body[:100]))}") from error


def _error_message(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    try:
        message = json.loads(text)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        # TensorFlow Serving escapes its message as C does, which is not always JSON.
        match = _ERROR.fullmatch(text)
        message = match.group(1) if match else text
    return one_line(str(message)) or "no message."


def _malformed(found: str) -> SfmError:
    return SfmError(
        f"The server's answer has {found}; check that it speaks TensorFlow Serving's REST protocol."
    )
