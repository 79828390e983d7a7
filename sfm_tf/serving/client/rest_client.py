"""A client of TensorFlow Serving's REST interface; needs NumPy and nothing else.

The interface: https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import binascii
import contextlib
import dataclasses
import http.client
import json
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.model_client import (
    DEFAULT_POLICY,
    ModelClient,
    Outputs,
    RetryPolicy,
    ServerError,
    one_line,
    with_retries,
)

CONNECT_SECONDS = 5.0
"""How long a connection may take to be made."""

LARGEST_ANSWER = 256 * 2**20
"""Bytes of an answer; 32 explained images of 224x224x3 are up to 225 MB of JSON."""

_CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class HttpReply:
    """What a server answered.

    Attributes:
        status: HTTP status code.
        reason: Words for it.
        body: Bytes of the answer.
        retry_after: Seconds the server asks to wait before a repetition; 0 if it does not say.
    """

    status: int
    reason: str
    body: bytes
    retry_after: float


def check_server(server: str) -> str:
    """Returns the address of a REST server without a final slash.

    Raises:
        SfmError: Unless it is `http://` or `https://`, a host, and perhaps a port and a path.
    """
    try:
        parts = urllib.parse.urlsplit(server)
        is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        is_plain = not (parts.username or parts.query or parts.fragment)
    except ValueError:  # A port that is no number, or half an IPv6 address.
        is_valid = is_plain = False
    if not (
        is_valid and is_plain and server.isascii() and server.isprintable() and " " not in server
    ):
        raise SfmError(f"Invalid server {server!r}; expected one like 'http://127.0.0.1:8501'.")
    return server.rstrip("/")


def exchange(method: str, url: str, body: bytes | None, seconds: float) -> HttpReply:
    """Sends a request and returns the answer, whatever its status.

    Args:
        method: "GET" or "POST".
        url: Where to, of a server that `check_server` accepts.
        body: JSON to send, if any.
        seconds: When to give up.

    Raises:
        ServerError: If no complete answer comes; retryable but for a certificate that is not
            trusted and an answer over `LARGEST_ANSWER`.
    """
    end = time.monotonic() + seconds
    parts = urllib.parse.urlsplit(url)
    connection = _connection(parts, min(seconds, CONNECT_SECONDS))
    origin = f"{parts.scheme}://{parts.netloc}"
    try:
        connection.connect()
        with _shut_down_after(connection.sock, end - time.monotonic()):
            reply = _exchange(connection, method, parts.path, body)
        if time.monotonic() >= end:
            # What was shut down looks like an answer that ended there.
            raise TimeoutError
        return reply
    except ssl.SSLCertVerificationError as error:
        raise ServerError(f"Cannot trust {origin}: {one_line(error.verify_message)}.") from error
    except (OSError, http.client.HTTPException) as error:
        is_late = time.monotonic() >= end
        found = f"nothing within {seconds:.1f} seconds" if is_late else _describe(error)
        raise ServerError(f"No answer from {origin}: {found}.", retryable=True) from error
    finally:
        connection.close()


def _describe(error: Exception) -> str:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return one_line(reason) or type(error).__name__


def _connection(parts: urllib.parse.SplitResult, seconds: float) -> http.client.HTTPConnection:
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    return kinds[parts.scheme](parts.hostname, parts.port, timeout=seconds)


@contextlib.contextmanager
def _shut_down_after(connected: socket.socket, seconds: float) -> Iterator[None]:
    """Ends all traffic when time is up; a socket's own timeout starts again with every byte."""

    def shut_down() -> None:
        # Fails where the other side, or the end of the exchange, was faster.
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)

    connected.settimeout(None)
    timer = threading.Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
) -> HttpReply:
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    # A server that refuses a large body answers before it has read all of it.
    with contextlib.suppress(BrokenPipeError):
        connection.request(method, path, body, headers)
    with connection.getresponse() as response:
        return HttpReply(
            response.status, response.reason, _read(response), _retry_after(response.headers)
        )


def _read(response: http.client.HTTPResponse) -> bytes:
    chunks, size = [], 0
    while chunk := response.read(_CHUNK):
        chunks.append(chunk)
        size += len(chunk)
        if size > LARGEST_ANSWER:
            raise ServerError(
                f"The server's answer is over {LARGEST_ANSWER:,} bytes; use a smaller batch_size."
            )
    if response.length:  # What was announced and did not come.
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(chunks)


def _retry_after(headers: http.client.HTTPMessage) -> float:
    value = (headers.get("Retry-After") or "").strip()
    return float(value) if value.isascii() and value.isdigit() else 0.0


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
