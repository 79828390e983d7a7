import asyncio
import contextlib
import importlib.util
import json
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import tensorflow as tf
from absl.testing import flagsaver

from pipelines import serve
from sfm_tf.errors import SfmError

ROOT = pathlib.Path(serve.__file__).parents[1]


@tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="images")])
def double(images):
    return {"doubled": images * 2}


def test_each_folder_is_a_model_of_its_name(tmp_path):
    folders = [str(tmp_path / "a"), str(tmp_path / "b") + "/"]
    assert serve.find_models(None, folders) == {"a": tmp_path / "a", "b": tmp_path / "b"}


@pytest.mark.parametrize(
    ("workdir", "folders", "message"),
    [
        (None, [], "Give either --workdir or --model_dir"),
        ("runs/a", ["models/a"], "Give either --workdir or --model_dir"),
        (None, ["x/a", "y/a"], "have the same name"),
        (None, ["gs://b/a"], "Cannot serve gs://b/a: this server reads local folders"),
        ("/absent", [], "Stage export has not finished in /absent"),
    ],
)
def test_what_to_serve_must_be_clear(workdir, folders, message):
    with pytest.raises(SfmError, match=message):
        serve.find_models(workdir, folders)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["stray"], {}, "Error: Unexpected argument 'stray'"),
        ([], {}, "Error: Give either --workdir or --model_dir."),
        ([], {"model_dir": ["/absent"]}, "Error: "),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, settings, message, capsys):
    with flagsaver.flagsaver(**settings):
        assert serve.main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_it_can_be_stopped_while_it_starts(number, tmp_path, capsys, monkeypatch):
    ended = []

    @contextlib.asynccontextmanager
    async def start_for_ever(settings):
        signal.raise_signal(number)
        try:
            await asyncio.sleep(60)
            yield "", ""
        finally:
            ended.append(settings)

    monkeypatch.setattr(serve, "running_server", start_for_ever)
    with flagsaver.flagsaver(model_dir=[str(tmp_path)]):
        assert serve.main(["serve"]) == 130
    assert capsys.readouterr() == ("Starting Ray Serve ...\nStopping ...\n", "")
    assert len(ended) == 1


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def loopback():
    """An address of this machine, of IPv6 where there is one."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return "::1", "[::1]"
    except OSError:
        return "127.0.0.1", "127.0.0.1"


def test_the_program_serves_until_it_is_told_to_stop(tmp_path, capsys):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is optional: pip install -r requirements-ray.txt")
    folder = tmp_path / "doubling"
    tf.saved_model.save(tf.Module(), str(folder / "1"), signatures={"serving_default": double})
    port, grpc_port = free_port(), free_port()
    host, written_host = loopback()
    ports = [f"--rest_port={port}", f"--grpc_port={grpc_port}"]
    arguments = [f"--model_dir={folder}", f"--host={host}", *ports]
    command = [sys.executable, "-m", "pipelines.serve", *arguments]
    url = f"http://{written_host}:{port}/v1/models/doubling:predict"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        try:
            lines = iter(process.stdout.readline, "")
            said = [next(lines).strip() for _ in range(4)]
            assert said == [
                "Starting Ray Serve ...",
                f"REST: {url}",
                f"gRPC: {written_host}:{grpc_port}",
                "Ctrl-C stops the server.",
            ]
            with urllib.request.urlopen(url, b'{"instances": [[0.25]]}', timeout=60) as answer:
                assert json.load(answer) == {"predictions": [[0.5]]}
            # A second server of another model would share the port with the first.
            settings = {"model_dir": [str(folder)], "host": host, "rest_port": port}
            with flagsaver.flagsaver(**settings, grpc_port=free_port()):
                assert serve.main(["serve"]) == 2
            error = f"Error: Cannot listen on {written_host}:{port}: Address already in use; "
            assert capsys.readouterr().err.startswith(error)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert list(lines) == ["Stopping ...\n"]
        finally:
            process.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, b"{}", timeout=5)
        except urllib.error.URLError:
            return
    raise AssertionError("still answering")
