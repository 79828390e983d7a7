"""Scripts of a few lines stand in for the one that loads TensorFlow, which takes seconds."""

import pathlib

import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving import fresh_process
from sfm_tf.serving.fresh_process import Pass, answer_in_fresh_process

IMAGES = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1)
PASSES = [Pass("serving_default", "images", 2, 3), Pass("predict_bytes", "image_bytes", 1, 2)]

ANSWERING = """
import json, os, pathlib, sys
import numpy as np
folder = pathlib.Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
assert request["timing"]["signature"] == "serving_default"
assert request["timing"]["batch_sizes"] == [1, 8, 64]
assert not [name for name in os.environ if name.startswith("PYTHON")], "inherited"
assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
assert sys.flags.isolated
for number, asked in enumerate(request["passes"]):
    examples = np.load(folder / (asked["input"] + ".npy"), allow_pickle=False)[:asked["count"]]
    np.save(folder / f"{number}.lengths.npy", np.array([len(example) for example in examples]))
    np.save(folder / f"{number}.sizes.npy", asked["batch_size"] * np.ones(len(examples)))
batch = dict(batch_size=1, calls=3, median_seconds=0.5, p95_seconds=1.0, peak_memory_bytes=None)
performance = dict(cpu_count=7, loaded_memory_bytes=None, batches=[batch])
(folder / "performance.json").write_text(json.dumps(performance))
"""


def answer(
    folder: pathlib.Path, script: str, monkeypatch: pytest.MonkeyPatch, timeout_seconds: float = 60
) -> fresh_process.FreshAnswers:
    path = folder / "script.py"
    path.write_text(script)
    monkeypatch.setattr(fresh_process.fresh_process_check, "__file__", str(path))
    scratch = folder / "scratch"
    scratch.mkdir()
    inputs = {"images": IMAGES, "image_bytes": np.array([b"four", b"", b"seven.."])}
    return answer_in_fresh_process(folder, inputs, PASSES, scratch, timeout_seconds)


def test_every_pass_gets_its_examples_and_gives_its_outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    found = answer(tmp_path, ANSWERING, monkeypatch)
    images, files = found.answers
    np.testing.assert_array_equal(images["lengths"], [1, 1, 1])
    np.testing.assert_array_equal(images["sizes"], [2, 2, 2])
    np.testing.assert_array_equal(files["lengths"], [4, 0])
    np.testing.assert_array_equal(files["sizes"], [1, 1])
    assert found.performance.cpu_count == 7
    assert found.performance.batches[0].p95_seconds == 1.0


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise KeyError('no such signature')", r"\(exit status 1\): KeyError: 'no such signature"),
        ("raise SystemExit(3)", r"\(exit status 3\): no message"),
        ("import os; os.kill(os.getpid(), 9)", r"ended by SIGKILL, often for lack of memory"),
        ("import os; os.abort()", r"ended by SIGABRT\)"),
        ("pass", r"performance\.json"),
    ],
)
def test_a_process_that_dies_is_told_with_its_last_words(tmp_path, monkeypatch, script, message):
    with pytest.raises(SfmError, match=message):
        answer(tmp_path, script, monkeypatch)


def test_a_process_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    with pytest.raises(SfmError, match=r"took over 0\.3 seconds; verify with fewer images"):
        answer(tmp_path, "import time; time.sleep(60)", monkeypatch, timeout_seconds=0.3)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
