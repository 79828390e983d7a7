import asyncio
import base64
import concurrent.futures
import contextlib
import gzip
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc import aio
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from sfm_tf.errors import SfmError
from sfm_tf.serving.prediction_service import RequestLimits
from sfm_tf.serving.ray_server import (
    ServerSettings,
    _start_ray,
    _to_the_end,
    check_installed,
    check_models,
    prepare_environment,
    reserved,
    resolve,
    running_server,
    start_grpc_server,
)
from tests.sfm_tf.serving.toy_model import IMAGES, logits, write_version

SERVICES = ("/toy.Echo/",)


async def echo(method, request):
    if request == b"fail":
        return 5, "no such thing", b""
    return 0, "", method.encode() + b" " + request


def ask(method, request, largest_message=1000):
    """Returns the answer, or the status code and details of the refusal."""

    async def converse():
        server, port = await start_grpc_server(
            resolve("127.0.0.1", 0), SERVICES, echo, largest_message
        )
        try:
            async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await channel.unary_unary(method)(request, timeout=20)
        except aio.AioRpcError as error:
            return error.code(), error.details()
        finally:
            await server.stop(None)

    return asyncio.run(converse())


@pytest.mark.parametrize(
    ("method", "request_bytes", "answer"),
    [
        ("/toy.Echo/Say", b"\0\xff", b"/toy.Echo/Say \0\xff"),
        ("/toy.Echo/Say", b"x" * 1000, b"/toy.Echo/Say " + b"x" * 1000),
        ("/toy.Echo/Say", b"fail", (grpc.StatusCode.NOT_FOUND, "no such thing")),
        ("/toy.Other/Say", b"", (grpc.StatusCode.UNIMPLEMENTED, "")),
        ("/toy.Echo/Say", b"x" * 1001, (grpc.StatusCode.RESOURCE_EXHAUSTED, "1001 vs. 1000")),
    ],
    ids=["bytes", "at the limit", "refused", "other service", "over the limit"],
)
def test_bytes_and_refusals_pass_as_they_are(method, request_bytes, answer):
    found = ask(method, request_bytes)
    if isinstance(answer, bytes):
        assert found == answer
    else:
        assert found[0] is answer[0]
        assert answer[1] in found[1]


def test_listens_where_it_is_told_and_nowhere_else():
    async def start():
        server, port = await start_grpc_server(resolve("127.0.0.1", 0), SERVICES, echo, 1000)
        try:
            with pytest.raises(SfmError, match=f"Cannot listen on 127.0.0.1:{port}"):
                await start_grpc_server(resolve("127.0.0.1", port), SERVICES, echo, 1000)
            # Free on another address of the machine, so the first does not listen on all.
            elsewhere = resolve("127.0.0.2", port)
            other, other_port = await start_grpc_server(elsewhere, SERVICES, echo, 1000)
            await other.stop(None)
            return port == other_port
        finally:
            await server.stop(None)

    assert asyncio.run(start())


def listen_as_ray_does(endpoint):
    """Listens with the options of the socket that Ray Serve opens for HTTP."""
    listener = socket.socket(endpoint.family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((endpoint.address, endpoint.port))
    listener.listen()
    return listener


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_others_could_share_is_in_use_all_the_same(host):
    endpoint = resolve("127.0.0.1", free_port())
    other = resolve(host, endpoint.port)
    in_use = pytest.raises(SfmError, match=f"Cannot listen on {other.text}: Address already in")
    with reserved(endpoint), listen_as_ray_does(endpoint) as listener:
        # It is the server that gets the connections, not the reservation.
        with socket.create_connection((endpoint.address, endpoint.port)):
            listener.accept()[0].close()
        with in_use:
            reserved(other).__enter__()
    with listen_as_ray_does(endpoint), in_use:
        reserved(other).__enter__()
    with reserved(other):  # Connections that are closing keep nobody off.
        pass


def test_of_two_servers_that_start_at_once_one_gets_the_port():
    endpoint = resolve("127.0.0.1", free_port())
    with reserved(endpoint):
        with pytest.raises(SfmError, match="Address already in use"):
            reserved(endpoint).__enter__()
        with reserved(resolve("127.0.0.2", endpoint.port)):
            pass
    with reserved(endpoint):
        pass


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "Cannot listen on 192.0.2.1:8501: Cannot assign requested address;"),
        ("x" * 70, "Cannot listen on x+:8501: .*label.*; stop the program that does, or give"),
    ],
    ids=["not of this machine", "no name"],
)
def test_an_address_that_is_not_to_be_had_is_told(host, reason):
    with pytest.raises(SfmError, match=reason):
        reserved(resolve(host, 8501)).__enter__()


def test_an_address_of_ipv6_has_brackets():
    assert resolve("::1", 8501).text == "[::1]:8501"
    assert resolve("localhost", 8501).text == "127.0.0.1:8501"


def test_who_stops_while_the_models_load_waits_for_the_thread_that_loads_them():
    done = []

    async def stop():
        started = threading.Event()

        def load():
            started.set()
            time.sleep(0.2)
            done.append("loaded")

        loading = asyncio.ensure_future(_to_the_end(asyncio.to_thread(load)))
        await asyncio.to_thread(started.wait)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        return list(done)

    assert asyncio.run(stop()) == ["loaded"]


def test_what_ray_says_of_its_start_becomes_one_line():
    class Ray:
        @staticmethod
        def init(**options):
            raise OSError("Traceback:\n  File x\nOSError: a path of over 107 bytes.\n")

    with pytest.raises(SfmError, match="^The server does not start: OSError: .* 107 bytes; Ray "):
        _start_ray(Ray, ServerSettings({}))


CONTAINER = "tensorflow/serving"


def ask_rest(url, body=None, packed=False):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Encoding": "gzip"} if packed else {}
    request = urllib.request.Request(url, gzip.compress(data) if packed else data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def check_rest(address, version):
    """What TensorFlow Serving answers to REST, asked of whichever server is there."""
    url = f"http://{address}/v1/models/toy"
    for at in (url, f"{url}/versions/{version}"):
        code, answer = ask_rest(f"{at}:predict", {"instances": IMAGES.tolist()})
        assert code == 200
        rows = [row["logits"] for row in answer["predictions"]]
        np.testing.assert_allclose(rows, logits(version), rtol=1e-6)
        (status,) = ask_rest(at)[1]["model_version_status"]
        assert (status["version"], status["state"]) == (str(version), "AVAILABLE")
        assert status["status"] == {"error_code": "OK", "error_message": ""}
        metadata = ask_rest(f"{at}/metadata")[1]
        assert metadata["model_spec"]["version"] == str(version)
        inputs = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]
        sizes = [dimension["size"] for dimension in inputs["images"]["tensor_shape"]["dim"]]
        assert sizes == ["-1", "4", "4", "1"]
    body = {"inputs": {"images": IMAGES.tolist()}}
    columns = ask_rest(f"{url}:predict", body, packed=True)[1]["outputs"]
    np.testing.assert_allclose(columns["logits"], logits(version), rtol=1e-6)
    encoded = [{"b64": base64.b64encode(data).decode()} for data in (b"\x89PNG\0", b"x")]
    body = {"signature_name": "predict_bytes", "instances": encoded}
    rows = ask_rest(f"{url}:predict", body)[1]["predictions"]
    assert rows == [
        {"copy_bytes": encoded[0], "status": 5},
        {"copy_bytes": encoded[1], "status": 1},
    ]


REFUSALS = [
    (":predict", {}, 400, ""),
    (":predict", {"instances": []}, 400, ""),
    (":predict", {"instances": ["a"]}, 400, "is not of expected type: float"),
    (":predict", {"instances": [1], "signature_name": "x"}, 400, "not found"),
    (":predict", {"instances": [[1], [1, 2]]}, 400, ""),
    (":predict", {"instances": IMAGES[0].tolist()}, 400, ""),
    ("/versions/99:predict", {"instances": [1]}, 404, "Specific(toy, 99)"),
    ("x:predict", {"instances": [1]}, 404, "Latest(toyx)"),
    ("x", None, 404, "Could not find any versions of model toyx"),
    ("/version/1:predict", {"instances": [1]}, 400, "Malformed request"),
]


def check_refusals(address):
    for suffix, body, code, message in REFUSALS:
        found, answer = ask_rest(f"http://{address}/v1/models/toy{suffix}", body)
        assert found == code, (suffix, body, answer)
        assert message in answer["error"]


def check_grpc(address, version):
    """What TensorFlow Serving answers to the unmodified stubs."""
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "toy"
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(IMAGES))
        response = stub.Predict(request, timeout=60)
        assert response.model_spec.version.value == version
        found = tf.make_ndarray(response.outputs["logits"])
        np.testing.assert_allclose(found, logits(version), rtol=1e-6)
        metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        metadata.model_spec.name = "toy"
        assert stub.GetModelMetadata(metadata, timeout=60).model_spec.version.value == version

        def refusal(changed):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Predict(changed, timeout=60)
            return caught.value.code().name

        request.inputs["images"].CopyFrom(tf.make_tensor_proto(IMAGES[0]))
        assert refusal(request) == "INVALID_ARGUMENT"
        request.model_spec.version.value = 99
        assert refusal(request) == "NOT_FOUND"
        request.model_spec.name = "other"
        assert refusal(request) == "NOT_FOUND"


def check_crowd(address, version):
    """Requests at the same time, which are merged, each get their own answer."""
    generator = np.random.default_rng(0)
    crowd = [generator.random((1 + place % 3, 4, 4, 1), np.float32) for place in range(40)]

    def one(images):
        body = {"instances": images.tolist()}
        return ask_rest(f"http://{address}/v1/models/toy:predict", body)[1]["predictions"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for images, rows in zip(crowd, pool.map(one, crowd), strict=True):
            found = [row["logits"] for row in rows]
            np.testing.assert_allclose(found, logits(version, images), rtol=1e-5)


def check_takeover(address, folder):
    """A version pushed meanwhile takes over, and every answer is wholly of one version."""
    write_version(folder, 2)
    seen = []
    deadline = time.monotonic() + 60
    while (not seen or seen[-1] == 1.0) and time.monotonic() < deadline:
        body = {"instances": np.zeros((2, 4, 4, 1)).tolist()}
        code, answer = ask_rest(f"http://{address}/v1/models/toy:predict", body)
        assert code == 200
        (value,) = {row["logits"][0] for row in answer["predictions"]}
        seen.append(value)
    assert sorted(set(seen)) in ([1.0, 2.0], [2.0])
    assert seen == sorted(seen)


def check_limits(address, limit):
    url = f"http://{address}/v1/models/toy:predict"
    for size, packed in ((limit, False), (3 * limit, False), (limit, True)):
        code, answer = ask_rest(url, {"instances": ["x" * size]}, packed)
        assert code == 413
        assert "larger than the limit" in answer["error"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_ray_serve_answers_as_tensorflow_serving_does(tmp_path):
    # Not imported here: Ray reads its token when it is imported.
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is optional: pip install -r requirements-ray.txt")
    folder = tmp_path / "toy"
    write_version(folder, 1)
    settings = ServerSettings(
        {"toy": folder},
        rest_port=free_port(),
        grpc_port=free_port(),
        poll_seconds=0.2,
        limits=RequestLimits(body_bytes=2**20),
    )

    def check(rest, grpc_address):
        check_rest(rest, 1)
        check_refusals(rest)
        check_grpc(grpc_address, 1)
        check_limits(rest, 2**20)
        check_crowd(rest, 1)
        check_takeover(rest, folder)
        check_grpc(grpc_address, 2)

    async def run():
        async with running_server(settings) as addresses:
            await asyncio.to_thread(check, *addresses)

    asyncio.run(run())


def container_problem():
    """Returns why the container cannot be started here; empty where it can."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    done = subprocess.run(["docker", "image", "inspect", CONTAINER], capture_output=True, text=True)
    return f"docker: {done.stderr.strip()}" if done.returncode else ""


@contextlib.contextmanager
def container(folder):
    """Starts TensorFlow Serving itself on a model's folder; yields its addresses."""
    command = ["docker", "run", "--rm", "-d", "-p", "127.0.0.1::8500", "-p", "127.0.0.1::8501"]
    command += ["-v", f"{folder}:/models/toy:ro", "-e", "MODEL_NAME=toy", CONTAINER]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        ports = [
            subprocess.run(
                ["docker", "port", name, port], check=True, capture_output=True, text=True
            ).stdout.split()[0]
            for port in ("8501", "8500")
        ]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if ask_rest(f"http://{ports[0]}/v1/models/toy")[0] == 200:
                    break
            time.sleep(0.5)
        yield ports
    finally:
        subprocess.run(["docker", "kill", name], capture_output=True)


def test_tensorflow_serving_itself_answers_the_same(tmp_path):
    problem = container_problem()
    if problem:
        pytest.skip(f"not run on TensorFlow Serving: {problem}")
    folder = tmp_path / "toy"
    write_version(folder, 1)
    with container(folder) as (rest, grpc_address):
        check_rest(rest, 1)
        check_refusals(rest)
        check_grpc(grpc_address, 1)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SfmError, match="needs ray, which is not installed"):
        check_installed()


def test_ray_must_not_have_been_imported(tmp_path, monkeypatch):
    async def enter():
        ports = {"rest_port": free_port(), "grpc_port": free_port()}
        async with running_server(ServerSettings({"toy": tmp_path}, **ports)):
            raise AssertionError("a server without a token")

    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "found")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(SfmError, match="Ray was imported before .*process of its own"):
        asyncio.run(enter())


def test_a_folder_without_versions_is_named(tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(SfmError, match="No version of toy in .*named by a number"):
        check_models({"toy": tmp_path})
    (tmp_path / "1" / "saved_model.pb").touch()
    check_models({"toy": tmp_path})


def test_ray_reports_nothing_and_has_a_token_of_its_own():
    first, second = {"PYTHONPATH": "/elsewhere"}, {}
    prepare_environment(first)
    prepare_environment(second)
    assert first["RAY_USAGE_STATS_ENABLED"] == "0"
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert first["PYTHONPATH"].endswith(":/elsewhere")


def test_a_mode_that_was_chosen_is_kept():
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "1"}
    prepare_environment(environment)
    assert environment["RAY_AUTH_MODE"] == "disabled"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "1"
    assert "RAY_AUTH_TOKEN" not in environment
