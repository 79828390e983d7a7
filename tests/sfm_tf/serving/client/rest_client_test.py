import contextlib
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
from sfm_tf.serving.client.model_client import ServerError
from sfm_tf.serving.client.rest_client import RestClient
from tests.json_server import json_server

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


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(rest_client, "FIRST_WAIT_SECONDS", 0.01)


@contextlib.contextmanager
def _socket_server(*pieces, seconds=0.0):
    """A server for one connection that sends `pieces`, one every so many seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(seconds)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_images_are_sent_in_row_format_and_answers_read():
    with json_server((200, _PREDICTIONS)) as (address, requests):
        first, second = RestClient(address + "/", "sfm_defended").classify(_IMAGES)
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
    with json_server((200, _PREDICTIONS)) as (address, requests):
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
    with json_server((200, answer)) as (address, requests):
        (explanation,) = RestClient(address, "m").explain(_IMAGES[:1])
    assert json.loads(requests[0][2])["signature_name"] == "explain"
    assert explanation.mask.shape == (1, 2, 1)
    assert explanation.mask_png == b"\x89PNG\r\n\x1a\n"
    assert explanation.defended_png == b"image bytes"


def test_a_model_name_cannot_leave_its_place_in_the_path():
    with json_server((200, _PREDICTIONS)) as (address, requests):
        RestClient(address, "a/../b:c ?#").classify(_IMAGES)
    assert requests[0][1] == "/v1/models/a%2F..%2Fb%3Ac%20%3F%23:predict"


def test_status_and_metadata_have_routes_of_their_own():
    status = b"""{ "model_version_status": [ { "version": "3", "state": "AVAILABLE",
        "status": { "error_code": "OK", "error_message": "" } } ] }"""
    metadata = b"""{ "model_spec": { "name": "m", "signature_name": "", "version": "3" },
        "metadata": { "signature_def": { "signature_def": { "explain": {} } } } }"""
    with json_server((200, status), (200, metadata)) as (address, requests):
        client = RestClient(address, "m", version=3)
        assert [each.version for each in client.status()] == [3]
        assert list(client.metadata()) == ["explain"]
    assert [request[:2] for request in requests] == [
        ("GET", "/v1/models/m/versions/3"),
        ("GET", "/v1/models/m/versions/3/metadata"),
    ]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(status):
    with json_server((status, b"{}"), (status, b"{}"), (200, _PREDICTIONS)) as (address, requests):
        assert len(RestClient(address, "m").classify(_IMAGES)) == 2
    assert len(requests) == 3
    assert requests[0] == requests[2]


def test_gives_up_on_a_server_that_stays_busy():
    with (
        json_server((503, b'{"error": "queue full"}')) as (address, requests),
        pytest.raises(
            ServerError,
            match=r"answered 503 Service Unavailable: queue full \(after 3 attempts\)$",
        ) as caught,
    ):
        RestClient(address, "m", attempts=3).classify(_IMAGES)
    assert len(requests) == 3
    assert caught.value.code == "503"


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405, 409, 413, 500, 501])
def test_no_other_status_is_asked_again_and_no_redirect_followed(status):
    error = b'{ "error": "Servable not found for request: Latest(half)" }'
    with (
        json_server((status, error, ("Location", "/"))) as (address, requests),
        pytest.raises(ServerError, match=rf"answered {status} .*: Servable not found .*") as caught,
    ):
        RestClient(address, "half").classify(_IMAGES)
    assert len(requests) == 1
    assert caught.value.code == str(status)


def test_a_pause_that_the_server_asks_for_ends_at_the_deadline():
    start = time.monotonic()
    with (
        json_server((429, b"{}", ("Retry-After", "30"))) as (address, requests),
        pytest.raises(ServerError, match=r"No answer from http.* within 0\.3 seconds"),
    ):
        RestClient(address, "m", deadline_seconds=0.3).classify(_IMAGES)
    assert len(requests) == 1
    assert time.monotonic() - start < 2


def test_a_pause_that_makes_no_sense_is_named():
    with (
        json_server((429, b"{}", ("Retry-After", "soon"))) as (address, _),
        pytest.raises(ServerError, match="No answer from http.*: Invalid Retry-After header: soon"),
    ):
        RestClient(address, "m").classify(_IMAGES)


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",) * 5,
        (b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 20),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", *[b"x"] * 20),
    ],
    ids=["silent", "dripping head", "dripping body"],
)
def test_the_deadline_is_kept_whatever_the_server_does(pieces):
    start = time.monotonic()
    with (
        _socket_server(*pieces, seconds=0.2) as server,
        pytest.raises(ServerError, match=r"within 0\.5 seconds|timed out"),
    ):
        RestClient(server, "m", attempts=1, deadline_seconds=0.5).status()
    assert 0.4 < time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "Remote end closed connection without response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "5 more expected"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", "more expected"),
        (b"what?\x1b\r\n\r\n", "what"),
    ],
)
def test_a_connection_that_breaks_is_named_in_one_line(answer, message):
    with (
        _socket_server(answer) as server,
        pytest.raises(ServerError, match=f"No answer from {server}: .*{message}.*") as caught,
    ):
        RestClient(server, "m", attempts=1).status()
    assert str(caught.value).isprintable()


def test_a_server_that_is_not_there_is_named():
    with json_server((200, b"")) as (address, _):
        pass
    with pytest.raises(ServerError, match=f"No answer from {address}: Connection refused."):
        RestClient(address, "m").classify(_IMAGES)


def test_an_answer_that_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(rest_client, "LARGEST_ANSWER", 10)
    with (
        json_server((200, b"x" * 11)) as (address, requests),
        pytest.raises(ServerError, match="over 10 bytes; use a smaller batch_size"),
    ):
        RestClient(address, "m").classify(_IMAGES)
    assert len(requests) == 1


def test_an_answer_is_not_unpacked():
    answer = (200, b"\x1f\x8b\x08", ("Content-Encoding", "gzip"))
    with json_server(answer) as (address, _), pytest.raises(SfmError, match=r"no JSON but b'\\x1f"):
        RestClient(address, "m").classify(_IMAGES)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{ "error": "one\\ntwo" }', "one two"),
        # What TensorFlow Serving writes is escaped as in C: \' is not JSON.
        (b'{ "error": "Expecting \\\'inputs\\\' key" }', r".*Expecting \\'inputs\\' key.*"),
        (b"<html>Bad\x1b[31m gateway\xff</html>", r"<html>Bad \[31m gateway\ufffd</html>"),
        (b"", "no message."),
        (b"[1]", r"\[1\]"),
        (b'{"error": "' + b"x" * 9000 + b'"}', "x" * 500 + r"\.\.\."),
    ],
)
def test_the_servers_own_message_is_shown_in_one_line(body, shown):
    with (
        json_server((400, body)) as (address, _),
        pytest.raises(ServerError, match=f"answered 400 Bad Request: {shown}$"),
    ):
        RestClient(address, "m").classify(_IMAGES)


def _row(**changes):
    row = {"class_id": 0, "logits": [0.0], "probabilities": [1.0]}
    return json.dumps({"predictions": [{**row, **changes}]}).encode()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", "no JSON but b''"),
        (b'{"predictions": [', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no list of objects under 'predictions'"),
        (b"{}", "no list of objects"),
        (b'{"predictions": [[0.5]]}', "no list of objects"),
        (b'{"predictions": []}', "0 predictions for 1 images"),
        (b'{"predictions": [{}, {}]}', "2 predictions for 1 images"),
        (b'{"predictions": [{}]}', "no probabilities"),
        (_row(probabilities=[float("nan")]), "probabilities that is not finite"),
        (_row(class_id={"b64": "%%"}), "bytes that are not base64"),
    ],
)
def test_a_malformed_answer_is_named_and_not_asked_for_again(body, found):
    with (
        json_server((200, body)) as (address, requests),
        pytest.raises(SfmError, match=f"The server's answer has .*{found}"),
    ):
        RestClient(address, "m").classify(_IMAGES[:1])
    assert len(requests) == 1


def test_predictions_must_have_the_same_outputs():
    body = b'{"predictions": [{"class_id": 0}, {"other": 0}]}'
    with (
        json_server((200, body)) as (address, _),
        pytest.raises(SfmError, match="predictions with different outputs"),
    ):
        RestClient(address, "m").classify(_IMAGES)


def test_bytes_that_are_no_text_do_not_spoil_the_other_outputs():
    body = b'{"predictions": [{"class_id": 0, "logits": [0], "probabilities": [1], "x": "\x89P"}]}'
    with json_server((200, body)) as (address, _):
        assert RestClient(address, "m").classify(_IMAGES[:1])[0].class_id == 0


@pytest.mark.parametrize(
    "server",
    ["http://127.0.0.1:8501", "https://models.example.com/tenant/", "http://[::1]:8501/"],
)
def test_accepts_addresses_of_servers(server):
    assert RestClient(server, "m").server == server


@pytest.mark.parametrize(
    "server",
    [
        "127.0.0.1:8501",
        "localhost:8501",
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
        RestClient(server, "m")


def test_proxies_from_the_environment_are_not_followed(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with json_server((200, _PREDICTIONS)) as (address, requests):
        RestClient(address, "m").classify(_IMAGES)
    assert len(requests) == 1


def test_needs_no_tensorflow():
    modules = (folder_classification, grpc_client, rest_client)
    program = (
        f"import sys, {', '.join(module.__name__ for module in modules)}\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
