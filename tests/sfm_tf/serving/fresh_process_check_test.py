import importlib
import itertools
import subprocess
import sys

import numpy as np
import pytest

from sfm_tf.serving import fresh_process_check


@pytest.mark.parametrize(
    ("batch_size", "expected_batches"), [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (64, [5])]
)
def test_all_examples_are_answered_once_in_order(tmp_path, batch_size, expected_batches):
    examples = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    batches = []

    def signature(batch):
        batches.append(len(batch))
        values = batch.reshape(-1, 1)
        return {"logits": values * np.float32([1, -1]), "class_id": values[:, 0].astype(np.int64)}

    fresh_process_check.answer_in_batches(signature, examples, batch_size, str(tmp_path / "3"))
    assert batches == expected_batches
    logits, class_ids = np.load(tmp_path / "3.logits.npy"), np.load(tmp_path / "3.class_id.npy")
    np.testing.assert_array_equal(logits, [[0, 0], [1, -1], [2, -2], [3, -3], [4, -4]])
    np.testing.assert_array_equal(class_ids, [0, 1, 2, 3, 4])
    assert (logits.dtype, class_ids.dtype) == (np.float32, np.int64)


class Clock:
    """A clock that only the measured calls move."""

    def __init__(self, durations):
        self.now, self.durations, self.calls = 0.0, itertools.chain(durations), 0

    def perf_counter(self):
        return self.now

    def call(self):
        self.calls += 1
        self.now += next(self.durations)


def test_the_warm_up_is_not_counted_and_the_rank_of_p95_is_the_nearest(monkeypatch):
    # 100 calls take 1 to 100 s in another order; 95 of them take at most 95 s.
    clock = Clock([1000.0, 1000.0, *np.random.default_rng(0).permutation(100) + 1.0])
    monkeypatch.setattr(fresh_process_check, "time", clock)
    found = fresh_process_check.measure_calls(clock.call, 1e9, 100)
    assert found == {"calls": 100, "median_seconds": 50.5, "p95_seconds": 95.0}


@pytest.mark.parametrize(
    ("seconds", "most_calls", "expected_calls"), [(10.0, 100, 10), (1.0, 100, 3), (10.0, 4, 4)]
)
def test_calls_end_with_time_or_number_but_not_before_three(
    monkeypatch, seconds, most_calls, expected_calls
):
    clock = Clock(itertools.repeat(1.0))
    monkeypatch.setattr(fresh_process_check, "time", clock)
    found = fresh_process_check.measure_calls(clock.call, seconds, most_calls)
    assert found["calls"] == expected_calls
    assert clock.calls == expected_calls + 2


def test_every_batch_is_full_even_of_few_examples():
    batches = []
    examples = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = fresh_process_check.measure_performance(batches.append, examples, (1, 8), 0.0, 3)
    assert [batch["batch_size"] for batch in found["batches"]] == [1, 8]
    assert {len(batch) for batch in batches} == {1, 8}
    np.testing.assert_array_equal(batches[-1][:, 0], [0, 2, 4, 0, 2, 4, 0, 2])


def test_the_peak_is_that_of_the_system_in_bytes(tmp_path):
    status = tmp_path / "status"
    assert fresh_process_check.peak_memory_bytes(status) is None
    status.write_text("Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t  1234 kB\nVmRSS:\t  5 kB\n")
    assert fresh_process_check.peak_memory_bytes(status) == 1234 * 1024
    status.write_text("Name:\tkernel thread\n")
    assert fresh_process_check.peak_memory_bytes(status) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_the_peak_stays_when_the_memory_is_given_back():
    program = (
        "import runpy\n"
        f"peak = runpy.run_path({fresh_process_check.__file__!r})['peak_memory_bytes']\n"
        "before = peak()\n"
        "bytearray(300_000_000)\n"
        "print(before, peak())\n"
    )
    process = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    before, after = map(int, process.stdout.split())
    assert before < 250_000_000
    assert 300_000_000 < after < 600_000_000


def test_the_script_needs_nothing_of_the_library_to_start(tmp_path):
    command = [sys.executable, "-I", fresh_process_check.__file__]
    # Without arguments it fails where it reads them, so all it imports at the top was found.
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "IndexError: list index out of range" in process.stderr


def test_the_script_cannot_import_the_library(tmp_path, monkeypatch):
    (tmp_path / "request.json").write_text('{"saved_model": "missing"}')
    monkeypatch.setitem(sys.modules, "sfm_tf", sys.modules["sfm_tf"])
    with pytest.raises(OSError, match="missing"):
        fresh_process_check.main([str(tmp_path)])
    with pytest.raises(ImportError, match="import of sfm_tf halted"):
        importlib.import_module("sfm_tf")
