import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client import folder_classification, grpc_client, rest_client
from sfm_tf.serving.client.model_client import RetryPolicy, ServerError
from sfm_tf.serving.client.rest_client import RestClient, check_server, exchange


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
    monkeypatch.setattr(rest_client, "LARGEST_ANSWER", 10)
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


_QUICK = RetryPolicy(attempts=3, first_wait_seconds=0.01, deadline_seconds=10.0)
# The layout, the digits and the order of keys are those TensorFlow Serving writes.
_PREDICTIONS = b"""{
    "predictions": [
        {
            "class_id": 1,
            "logits": [-1.0, 0.1],
            "probabilities": [0.25, 0.75],
            "status": 0
        },
        {
            "class_id": -1,
            "logits": [0.0, 0.0],
            "probabilities": [0.5, 0.5],
            "status": 1
        }
    ]
}"""
_IMAGES = np.array([0.0, 0.1, 0.5, 1.0], np.float32).reshape(2, 1, 2, 1)


@contextlib.contextmanager
def _rest_client_server(*answers):
    """A TensorFlow Serving that gives each of `(status, body)` in turn, the last one for ever."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append((self.command, self.path, body))
            status, answer, *headers = answers[min(len(requests), len(answers)) - 1]
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            for header in headers:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = _answer  # noqa: N815  The names http.server calls.

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()
        thread.join()


def test_images_are_sent_in_row_format_and_answers_read():
    with _rest_client_server((200, _PREDICTIONS)) as (address, requests):
        first, second = RestClient(address, "sfm_defended").classify(_IMAGES)
    assert (first.class_id, first.probabilities) == (1, (0.25, 0.75))
    assert first.logits == (-1.0, float(np.float32(0.1)))
    assert (second.class_id, second.status) == (-1, 1)
    ((method, path, body),) = requests
    assert (method, path) == ("POST", "/v1/models/sfm_defended:predict")
    # 0.1 as float32, in enough digits to give the same float32 again.
    assert body == (
        b'{"signature_name": "serving_default", '
        b'"instances": [[[[0.0], [0.10000000149011612]]], [[[0.5], [1.0]]]]}'
    )


def test_files_are_sent_as_base64_objects():
    with _rest_client_server((200, _PREDICTIONS)) as (address, requests):
        RestClient(address, "m", version=3).classify_bytes([b"image bytes", b"awesome image bytes"])
    _, path, body = requests[0]
    assert path == "/v1/models/m/versions/3:predict"
    # The two literals are those of TensorFlow Serving's documentation.
    assert json.loads(body) == {
        "signature_name": "predict_bytes",
        "instances": [{"b64": "aW1hZ2UgYnl0ZXM="}, {"b64": "YXdlc29tZSBpbWFnZSBieXRlcw=="}],
    }


def test_explanations_hold_images_and_files():
    row = {
        "class_id": 2,
        "mask": [[[0.5], [1.0]]],
        "masked_image": [[[0.1], [0.2]]],
        "defended_image": [[[0.0], [1.0]]],
        "mask_png_bytes": {"b64": "iVBORw0KGgo="},
        "masked_png_bytes": {"b64": "iVBORw0KGgo="},
        "defended_png_bytes": {"b64": "aW1hZ2UgYnl0ZXM="},
    }
    answer = json.dumps({"predictions": [row]}).encode()
    with _rest_client_server((200, answer)) as (address, requests):
        (explanation,) = RestClient(address, "m").explain(_IMAGES[:1])
    assert json.loads(requests[0][2])["signature_name"] == "explain"
    assert explanation.mask.shape == (1, 2, 1)
    assert explanation.mask_png == b"\x89PNG\r\n\x1a\n"
    assert explanation.defended_png == b"image bytes"


def test_a_model_name_cannot_leave_its_place_in_the_path():
    with _rest_client_server((200, _PREDICTIONS)) as (address, requests):
        RestClient(address, "a/../b:c ?#").classify(_IMAGES)
    assert requests[0][1] == "/v1/models/a%2F..%2Fb%3Ac%20%3F%23:predict"


def test_status_and_metadata_have_routes_of_their_own():
    status = b"""{ "model_version_status": [ { "version": "3", "state": "AVAILABLE",
        "status": { "error_code": "OK", "error_message": "" } } ] }"""
    metadata = b"""{ "model_spec": { "name": "m", "signature_name": "", "version": "3" },
        "metadata": { "signature_def": { "signature_def": { } } } }"""
    with _rest_client_server((200, status), (200, metadata)) as (address, requests):
        client = RestClient(address, "m", version=3)
        assert [each.version for each in client.status()] == [3]
        assert client.metadata().version == 3
    assert [request[:2] for request in requests] == [
        ("GET", "/v1/models/m/versions/3"),
        ("GET", "/v1/models/m/versions/3/metadata"),
    ]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(status):
    with _rest_client_server((status, b"{}"), (status, b"{}"), (200, _PREDICTIONS)) as (
        address,
        requests,
    ):
        answers = RestClient(address, "m", retry_policy=_QUICK).classify(_IMAGES)
    assert len(answers) == 2
    assert len(requests) == 3
    assert requests[0] == requests[2]


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405, 409, 413, 500, 501])
def test_no_other_status_is_asked_again(status):
    error = b'{ "error": "Servable not found for request: Latest(half)" }'
    with (
        _rest_client_server((status, error)) as (address, requests),
        pytest.raises(ServerError, match=rf"answered {status} .*: Servable not found .*") as caught,
    ):
        RestClient(address, "half", retry_policy=_QUICK).classify(_IMAGES)
    assert len(requests) == 1
    assert caught.value.code == str(status)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{ "error": "one\\ntwo" }', "one two"),
        # What TensorFlow Serving writes is escaped as in C: \' is not JSON.
        (b'{ "error": "Expecting \\\'inputs\\\' key" }', r"Expecting \\'inputs\\' key"),
        (b"<html>Bad\x1b[31m gateway\xff</html>", r"<html>Bad \[31m gateway\ufffd</html>"),
        (b"", "no message."),
        (b"[1]", r"\[1\]"),
        (b'{"error": "' + b"x" * 9000 + b'"}', "x" * 500 + r"\.\.\."),
    ],
)
def test_the_servers_own_message_is_shown_in_one_line(body, shown):
    with (
        _rest_client_server((400, body)) as (address, _),
        pytest.raises(ServerError, match=f"answered 400 Bad Request: {shown}$"),
    ):
        RestClient(address, "m").classify(_IMAGES)


def test_gives_up_on_a_server_that_stays_busy():
    with (
        _rest_client_server((503, b'{"error": "queue full"}')) as (address, requests),
        pytest.raises(
            ServerError, match=r"answered 503 Service Unavailable: queue full .* 3 of 3 attempts"
        ),
    ):
        RestClient(address, "m", retry_policy=_QUICK).classify(_IMAGES)
    assert len(requests) == 3


def test_a_wait_that_the_server_asks_for_counts_against_the_deadline():
    start = time.monotonic()
    with (
        _rest_client_server((429, b"{}", ("Retry-After", "30"))) as (address, requests),
        pytest.raises(ServerError, match="1 of 3 attempts"),
    ):
        RestClient(address, "m", retry_policy=_QUICK).classify(_IMAGES)
    assert len(requests) == 1
    assert time.monotonic() - start < 5


def test_a_server_that_is_not_there_is_told():
    with _rest_client_server((200, b"")) as (address, _):
        pass
    with pytest.raises(ServerError, match="No answer from http://127.*Connection refused.* 3 of 3"):
        RestClient(address, "m", retry_policy=_QUICK).classify(_IMAGES)


def _row(**changes):
    row = {"class_id": 0, "logits": [0.0], "probabilities": [1.0]}
    return {"predictions": [{**row, **changes}]}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", "no JSON but b''"),
        (b'{"predictions": [', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no list of objects under 'predictions'"),
        (b"{}", "no list of objects"),
        (b'{"predictions": {}}', "no list of objects"),
        (b'{"predictions": [[0.5]]}', "no list of objects"),
        (b'{"predictions": []}', "0 predictions for 1 images"),
        (b'{"predictions": [{}, {}]}', "2 predictions for 1 images"),
        (b'{"predictions": [{}]}', "no probabilities"),
        (json.dumps(_row(probabilities=[float("nan")])).encode(), "probabilities that is not fin"),
        (json.dumps(_row(logits=[float("-inf")])).encode(), "logits that is not finite"),
        (json.dumps(_row(logits=1.0)).encode(), "logits of rank 1"),
        (json.dumps(_row(class_id={"b64": "%%"})).encode(), "bytes that are not base64"),
    ],
)
def test_a_malformed_answer_is_named_and_not_asked_for_again(body, found):
    with (
        _rest_client_server((200, body)) as (address, requests),
        pytest.raises(SfmError, match=f"The server's answer has .*{found}"),
    ):
        RestClient(address, "m", retry_policy=_QUICK).classify(_IMAGES[:1])
    assert len(requests) == 1


def test_predictions_must_have_the_same_outputs():
    body = b'{"predictions": [{"class_id": 0}, {"other": 0}]}'
    with (
        _rest_client_server((200, body)) as (address, _),
        pytest.raises(SfmError, match="predictions with different outputs"),
    ):
        RestClient(address, "m").classify(_IMAGES)


def test_bytes_that_are_no_text_do_not_spoil_the_other_outputs():
    body = b'{"predictions": [{"class_id": 0, "logits": [0], "probabilities": [1], "x": "\x89P"}]}'
    with _rest_client_server((200, body)) as (address, _):
        assert RestClient(address, "m").classify(_IMAGES[:1])[0].class_id == 0


def test_a_bad_address_is_refused_at_once():
    with pytest.raises(SfmError, match="Invalid server 'localhost:8501'"):
        RestClient("localhost:8501", "m")


def test_needs_no_tensorflow():
    modules = (folder_classification, grpc_client, rest_client)
    program = (
        f"import sys, {', '.join(module.__name__ for module in modules)}\n"
        "print(sorted({'tensorflow', 'keras', 'grpc', 'requests', 'google'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
