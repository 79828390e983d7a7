import contextlib
import csv
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from pipelines import classify
from sfm_tf.errors import SfmError
from sfm_tf.serving.client.rest_client import RestClient


@contextlib.contextmanager
def _server():
    """A TensorFlow Serving whose model finds class 1 in every file, and the file "bad" no image."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802  The name http.server calls.
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/models/m:predict":
                return self._send(404, {"error": "Servable not found for request: Latest(x)"})
            rows = []
            for instance in request["instances"]:
                is_bad = instance == {"b64": "YmFk"}
                row = {"class_id": -1 if is_bad else 1, "status": int(is_bad)}
                rows.append({**row, "logits": [0.0, 0.0], "probabilities": [0.5, 0.5]})
            return self._send(200, {"predictions": rows})

        def _send(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, content in {"=1.png": b"good", "b.jpg": b"bad", "c.png": b"good"}.items():
        (folder / name).write_bytes(content)
    return folder


def _run(*arguments):
    root = pathlib.Path(classify.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", "pipelines.classify", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.fspath(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_writes_a_row_per_image_and_tells_its_progress(images, tmp_path, capsys):
    (tmp_path / "names.json").write_text('["cat", "dog"]')
    output = tmp_path / "answers.csv"
    with _server() as address:
        client = RestClient(address, "m", batch_size=2)
        classify.classify(client, images, output, tmp_path / "names.json")
    with open(output, newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["file", "status", "class_id", "class_name", "probability"],
        ["'=1.png", "classified", "1", "dog", "0.5"],
        ["b.jpg", "cannot be decoded as PNG or JPEG", "", "", ""],
        ["c.png", "classified", "1", "dog", "0.5"],
    ]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "classify: images 2/3"
    assert lines[-1].startswith("classify: images 3/3")


def test_an_output_that_cannot_be_written_is_told_before_the_server_is_asked(images, tmp_path):
    client = RestClient("http://127.0.0.1:9", "m")
    with pytest.raises(SfmError, match="No folder"):
        classify.classify(client, images, tmp_path / "gone" / "a.csv")


def test_the_program_needs_no_working_directory(images, tmp_path):
    output = tmp_path / "answers.json"
    with _server() as address:
        result = _run(
            f"--server={address}", "--model_name=m", f"--images={images}", f"--output={output}"
        )
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == f"classify: 3 images, 1 not classified: {output}"
    assert [row["class_id"] for row in json.loads(output.read_text())] == [1, None, 1]
    assert not (tmp_path / "runs").exists()


def test_an_error_is_one_line(images, tmp_path):
    with _server() as address:
        settings = [f"--server={address}", f"--images={images}", f"--output={tmp_path / 'a.csv'}"]
        result = _run(*settings, "--model_name=x")
    assert result.returncode == 2
    assert result.stderr == (
        f"Error: The server {address} answered 404 Not Found: "
        "Servable not found for request: Latest(x)\n"
    )
    assert not (tmp_path / "a.csv").exists()


def test_over_rest_no_tensorflow_is_loaded():
    root = pathlib.Path(classify.__file__).parents[1]
    code = "import sys, pipelines.classify; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
