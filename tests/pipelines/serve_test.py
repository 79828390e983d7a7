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


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_program_serves_until_it_is_told_to_stop(tmp_path):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is optional: pip install -r requirements-ray.txt")
    folder = tmp_path / "doubling"
    tf.saved_model.save(tf.Module(), str(folder / "1"), signatures={"serving_default": double})
    port = free_port()
    flags = [f"--model_dir={folder}", f"--rest_port={port}", f"--grpc_port={free_port()}"]
    command = [sys.executable, "-m", "pipelines.serve", *flags]
    url = f"http://127.0.0.1:{port}/v1/models/doubling:predict"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stdout.readline, "")
            said = [next(line for line in lines if line.startswith("REST: ")).strip()]
            assert said == [f"REST: {url}"]
            with urllib.request.urlopen(url, b'{"instances": [[0.25]]}', timeout=60) as answer:
                assert json.load(answer) == {"predictions": [[0.5]]}
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, b"{}", timeout=5)
        except urllib.error.URLError:
            return
    raise AssertionError("still answering")
