import contextlib
import socket
import threading
import time

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client import http_exchange
from sfm_tf.serving.client.http_exchange import check_server, exchange
from sfm_tf.serving.client.server_error import ServerError


@contextlib.contextmanager
def _server(answer, reads=65536):
    """A server for one connection that sends the pieces of `answer`, whatever it is asked."""
    received = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                received.append(connection.recv(reads))
                for piece in answer:
                    connection.sendall(piece)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
        thread.join(timeout=10)


def _slowly(*pieces, seconds):
    for piece in pieces:
        yield piece
        time.sleep(seconds)


def test_sends_the_request_and_returns_the_answer():
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"
    with _server([answer]) as (server, received):
        reply = exchange("POST", f"{server}/v1/models/m:predict", b"{}", 5.0)
    assert (reply.status, reply.reason, reply.body) == (404, "Not Found", b"gone")
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/models/m:predict HTTP/1.1\r\n")
    assert b"Content-Type: application/json" in head.split(b"\r\n")
    assert b"Content-Length: 2" in head.split(b"\r\n")
    assert body in (b"{}", b"")  # The body may come in a segment of its own.


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 7", 7.0),
        ("Retry-After: Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        ("Retry-After: -3", 0.0),
        ("X: y", 0.0),
    ],
)
def test_reads_how_long_to_wait(header, seconds):
    answer = f"HTTP/1.1 503 Busy\r\n{header}\r\nContent-Length: 0\r\n\r\n".encode()
    with _server([answer]) as (server, _):
        assert exchange("GET", f"{server}/", None, 5.0).retry_after == seconds


def test_redirects_are_not_followed():
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://example.com/\r\nContent-Length: 0\r\n\r\n"
    with _server([answer]) as (server, _):
        assert exchange("GET", f"{server}/", None, 5.0).status == 302


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "Remote end closed connection without response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "5 more expected"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", "IncompleteRead"),
        (b"what?\x1b\r\n\r\n", "what"),
    ],
)
def test_a_connection_that_breaks_can_be_tried_again(answer, message):
    with _server([answer]) as (server, _), pytest.raises(ServerError, match=message) as caught:
        exchange("GET", f"{server}/", None, 5.0)
    assert caught.value.retryable
    assert "\x1b" not in str(caught.value)


def test_a_refused_connection_can_be_tried_again():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServerError, match="Connection refused") as caught:
        exchange("GET", f"http://127.0.0.1:{port}/", None, 5.0)
    assert caught.value.retryable


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",) * 5,
        (b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 20),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", *[b"x"] * 20),
    ],
    ids=["silent", "dripping head", "dripping body"],
)
def test_the_time_is_kept_whatever_the_server_does(pieces):
    start = time.monotonic()
    with (
        _server(_slowly(*pieces, seconds=0.2)) as (server, _),
        pytest.raises(ServerError, match=r"nothing within 0\.5 seconds") as caught,
    ):
        exchange("GET", f"{server}/", None, 0.5)
    assert caught.value.retryable
    assert 0.4 < time.monotonic() - start < 2.0


def test_an_answer_that_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(http_exchange, "LARGEST_ANSWER", 10)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b"x" * 11
    with (
        _server([answer]) as (server, _),
        pytest.raises(ServerError, match="over 10 bytes; use a smaller batch_size") as caught,
    ):
        exchange("GET", f"{server}/", None, 5.0)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("server", "kept"),
    [
        ("http://127.0.0.1:8501", "http://127.0.0.1:8501"),
        ("https://models.example.com/tenant/", "https://models.example.com/tenant"),
        ("http://[::1]:8501/", "http://[::1]:8501"),
    ],
)
def test_accepts_addresses_of_servers(server, kept):
    assert check_server(server) == kept


@pytest.mark.parametrize(
    "server",
    [
        "127.0.0.1:8501",
        "ftp://127.0.0.1",
        "http://",
        "http://:8501",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://user:secret@host",
        "http://host/?key=1",
        "http://host/a b",
        "http://host\r\nX: y",
        "http://h\u00f6st",
        "",
    ],
)
def test_refuses_other_addresses(server):
    with pytest.raises(SfmError, match="expected one like 'http://127.0.0.1:8501'"):
        check_server(server)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
