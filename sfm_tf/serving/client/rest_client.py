"""A client of TensorFlow Serving's REST interface.

The interface: https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import binascii
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import requests
import urllib3
from requests.adapters import HTTPAdapter

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.model_client import (
    FIRST_WAIT_SECONDS,
    LARGEST_ANSWER,
    LONGEST_WAIT_SECONDS,
    ModelClient,
    Outputs,
    ServerError,
    one_line,
)

CONNECT_SECONDS = 5.0
"""How long a connection may take to be made."""

RETRYABLE = frozenset({429, 502, 503, 504})
"""HTTP statuses after which the same request can succeed later."""

_CHUNK = 2**20
_HEADERS = {
    "Accept": "application/json",
    # Nothing is unpacked, so the bytes that are counted are the bytes that are held.
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
}

Result = TypeVar("Result")


def check_server(server: str) -> None:
    """Checks the address of a REST server.

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


@dataclasses.dataclass(frozen=True, eq=False)
class RestClient(ModelClient):
    """Asks a served model over HTTP, at an address such as "http://127.0.0.1:8501".

    client = RestClient("http://127.0.0.1:8501", "sfm_defended")
    answers = client.classify_files(["cat.png", "dog.jpg"])
    """

    def __post_init__(self) -> None:
        """Raises `SfmError` if a setting is not usable; nothing is sent."""
        super().__post_init__()
        check_server(self.server)

    def _predict(
        self, signature_name: str, input_name: str, values: np.ndarray | Sequence[bytes]
    ) -> Outputs:
        # With a single input, rows are its bare values and need no name.
        request = {"signature_name": signature_name, "instances": _instances(values)}
        body = json.dumps(request, allow_nan=False).encode("ascii")
        return _columns(self._send("POST", ":predict", body), len(values))

    def _get_status(self) -> Any:
        return self._send("GET", "")

    def _get_metadata(self) -> Any:
        return self._send("GET", "/metadata")

    def _send(self, method: str, verb: str, body: bytes | None = None) -> Any:
        name = urllib.parse.quote(self.model_name, safe="")
        version = "" if self.version is None else f"/versions/{self.version}"
        url = f"{self.server.rstrip('/')}/v1/models/{name}{version}{verb}"
        request = requests.Request(method, url, _HEADERS, data=body).prepare()
        timeout = (min(CONNECT_SECONDS, self.deadline_seconds), self.deadline_seconds)
        # A session would follow redirects, read their bodies whole, and use proxies and passwords
        # that it finds in the environment.
        with contextlib.closing(HTTPAdapter(max_retries=self._retry())) as adapter:

            def ask() -> tuple[requests.Response, bytes]:
                certificates = _trusted_certificates()
                response = adapter.send(request, True, timeout, certificates)
                return response, _read(response)

            try:
                response, answer = _within(self.deadline_seconds, ask)
            except concurrent.futures.TimeoutError as error:
                seconds = f"{self.deadline_seconds:g} seconds"
                raise ServerError(f"No answer from {self.server} within {seconds}.") from error
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise ServerError(f"No answer from {self.server}: {_cause(error)}.") from error
        if response.status_code != 200:
            raise self._refused(response, answer)
        return _parse(answer)

    def _retry(self) -> urllib3.Retry:
        return urllib3.Retry(
            total=self.attempts - 1,
            other=0,  # A certificate that is not trusted will not be the next time.
            status_forcelist=RETRYABLE,
            allowed_methods=None,
            raise_on_status=False,
            backoff_factor=FIRST_WAIT_SECONDS,
            backoff_jitter=FIRST_WAIT_SECONDS,
            backoff_max=LONGEST_WAIT_SECONDS,
            retry_after_max=math.ceil(self.deadline_seconds),
        )

    def _refused(self, response: requests.Response, answer: bytes) -> ServerError:
        times = len(response.raw.retries.history) + 1
        status = one_line(f"{response.status_code} {response.reason}")
        attempts = "" if times == 1 else f" (after {times} attempts)"
        return ServerError(
            f"The server {self.server} answered {status}: {_error_message(answer)}{attempts}",
            code=str(response.status_code),
        )


def _trusted_certificates() -> str | bool:
    """Returns where the system keeps certificates, or True for those that `requests` brings."""
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def _within(seconds: float, ask: Callable[[], Result]) -> Result:
    """Returns what `ask` returns, but does not wait longer.

    The timeout of a socket starts again with every byte, so a server could keep a client for ever.
    """
    future: concurrent.futures.Future[Result] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def _read(response: requests.Response) -> bytes:
    chunks, size = [], 0
    for chunk in response.raw.stream(_CHUNK, decode_content=False):
        chunks.append(chunk)
        size += len(chunk)
        if size > LARGEST_ANSWER:
            raise ServerError(
                f"The server's answer is over {LARGEST_ANSWER:,} bytes; use a smaller batch_size."
            )
    return b"".join(chunks)


def _cause(error: BaseException) -> str:
    """Returns what is at the bottom of a chain of errors, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return one_line((isinstance(error, OSError) and error.strerror) or str(error) or repr(error))


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
        message = text  # TensorFlow Serving escapes its message as C does: not always JSON.
    return one_line(str(message)) or "no message."


def _malformed(found: str) -> SfmError:
    return SfmError(
        f"The server's answer has {found}; check that it speaks TensorFlow Serving's REST protocol."
    )
