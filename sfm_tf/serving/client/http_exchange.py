"""One HTTP request and its answer, bounded in time and size.

It opens a connection of its own, so that threads can share a client and no connection that a server
has quietly closed is used again. Proxies from the environment and redirects are not followed.
"""

import contextlib
import dataclasses
import http.client
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.server_error import ServerError, one_line

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
