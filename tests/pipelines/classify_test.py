import csv
import json
import pathlib
import socket
import subprocess
import sys

import pytest

from pipelines import classify
from sfm_tf.errors import SfmError
from sfm_tf.serving.client.rest_client import RestClient
from tests.json_server import json_server

_ROOT = pathlib.Path(classify.__file__).parents[1]


def _answer(*class_ids):
    """What a served model answers; -1 is the class of what is no image."""
    scores = {"logits": [0.0, 0.0], "probabilities": [0.5, 0.5]}
    rows = [{**scores, "class_id": each, "status": int(each < 0)} for each in class_ids]
    return 200, json.dumps({"predictions": rows}).encode()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, content in {"=1.png": b"good", "b.jpg": b"bad", "c.png": b"good"}.items():
        (folder / name).write_bytes(content)
    return folder


def test_writes_a_row_per_image_and_tells_its_progress(images, tmp_path, capsys):
    (tmp_path / "names.json").write_text('["cat", "dog"]')
    output = tmp_path / "answers.csv"
    with json_server(_answer(1, -1), _answer(1)) as (address, _):
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


def test_the_program_needs_neither_a_working_directory_nor_tensorflow(images, tmp_path):
    output = tmp_path / "answers.json"
    # As `python -m` does, but for the last line.
    code = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('pipelines.classify', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    print('tensorflow' in sys.modules)\n"
    )
    with json_server(_answer(1, -1, 1)) as (address, requests):
        arguments = [f"--server={address}", f"--images={images}", f"--output={output}"]
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--model_name=m"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "False\n"
    assert result.stderr.splitlines()[-1] == f"classify: 3 images, 1 not classified: {output}"
    assert [path for _, path, _ in requests] == ["/v1/models/m:predict"]
    assert [row["class_id"] for row in json.loads(output.read_text())] == [1, None, 1]
    assert not (tmp_path / "runs").exists()


def test_a_server_that_is_not_there_is_one_line_whatever_was_retried(images, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # Nothing listens there.
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        arguments = [f"--server={address}", f"--images={images}", f"--output={tmp_path / 'a.csv'}"]
        result = subprocess.run(
            [sys.executable, "-m", "pipelines.classify", *arguments, "--deadline_seconds=1.5"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr == f"Error: No answer from {address} within 1.5 seconds.\n"
