"""Answers with a SavedModel, and times it, as a server would: without the code that made it.

Run as a script of its own: `fresh_process_check.py FOLDER`. FOLDER holds `request.json`:

    saved_model  folder of the SavedModel
    timing       {signature, input_name, batch_sizes, seconds, most_calls}; sizes in growing order
    passes       [{signature, input_name, batch_size, count}]

and for every input the examples, `<input>.npy`. A pass sends the first COUNT of them in batches of
a size. Left in FOLDER are `performance.json`, what `measure_performance` returns, and for each pass
and each output of its signature `<number of the pass>.<output>.npy`. An output of strings is one of
PNG files, of which the pixels are kept.

It imports NumPy and TensorFlow only, and makes importing `sfm_tf` an error, so that a SavedModel
that needs the library cannot pass.
"""

import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Signature = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""From a batch of examples to the outputs by name, each a batch of the same size."""

REQUEST_FILE = "request.json"
PERFORMANCE_FILE = "performance.json"

_WARM_UP_CALLS = 2  # The first one plans the graph, and both fill the allocator's pools.
_FEWEST_CALLS = 3
_STATUS_FILE = pathlib.Path("/proc/self/status")


def answer_in_batches(
    signature: Signature, examples: np.ndarray, batch_size: int, prefix: str
) -> None:
    """Answers examples in batches of a given size, the last one being what is left.

    Args:
        signature: What answers.
        examples: Array whose first dimension counts examples, at least one.
        batch_size: Examples given to the signature at a time.
        prefix: Start of the names of the files to write, `<prefix>.<output>.npy`.
    """
    files: dict[str, np.ndarray] = {}
    for start in range(0, len(examples), batch_size):
        for name, values in signature(examples[start : start + batch_size]).items():
            if name not in files:
                shape = (len(examples), *values.shape[1:])
                files[name] = np.lib.format.open_memmap(
                    f"{prefix}.{name}.npy", "w+", values.dtype, shape
                )
            files[name][start : start + len(values)] = values


def measure_calls(call: Callable[[], object], seconds: float, most_calls: int) -> dict[str, Any]:
    """Times a call, after some that are not counted, until there are enough or time is up.

    Args:
        call: What is timed; it must wait for its own result.
        seconds: After how long no further call is made.
        most_calls: After how many of them, at least 3.

    Returns:
        `calls`, how many were timed, and `median_seconds` and `p95_seconds` of one, the latter by
        the nearest rank: 95 of 100 calls take no longer.
    """
    for _ in range(_WARM_UP_CALLS):
        call()
    deadline = time.perf_counter() + seconds
    durations: list[float] = []
    while len(durations) < _FEWEST_CALLS or (
        len(durations) < most_calls and time.perf_counter() < deadline
    ):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return {
        "calls": len(durations),
        "median_seconds": float(np.median(durations)),
        "p95_seconds": float(np.percentile(durations, 95, method="inverted_cdf")),
    }


def measure_performance(
    signature: Signature,
    examples: np.ndarray,
    batch_sizes: Sequence[int],
    seconds: float,
    most_calls: int,
) -> dict[str, Any]:
    """Measures how long batches take and how much memory this process has needed up to then.

    Args:
        signature: What is measured.
        examples: Examples to fill the batches with, again and again where there are too few.
        batch_sizes: Sizes in growing order, since a peak of memory never falls.
        seconds: Time for the calls of one size, and most calls of one size.
        most_calls: See `measure_calls`.

    Returns:
        `cpu_count` of the machine, `loaded_memory_bytes`, the peak before the first call, and
        `batches`: for each size `batch_size`, what `measure_calls` returns and
        `peak_memory_bytes`. A peak is None where the system does not tell it.
    """
    loaded = peak_memory_bytes()
    batches = []
    for size in batch_sizes:
        batch = np.resize(examples, (size, *examples.shape[1:]))
        times = measure_calls(functools.partial(signature, batch), seconds, most_calls)
        peak = {"peak_memory_bytes": peak_memory_bytes()}
        batches.append({"batch_size": size, **times, **peak})
    return {"cpu_count": os.cpu_count(), "loaded_memory_bytes": loaded, "batches": batches}


def peak_memory_bytes(status_file: pathlib.Path = _STATUS_FILE) -> int | None:
    """Returns the most memory this process has had resident; None where Linux is not there to ask.

    `getrusage` would not do: on Linux it counts what the parent had when it started this process.
    """
    if not status_file.exists():
        return None
    lines = status_file.read_text(encoding="ascii", errors="replace").splitlines()
    values = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(values[0]) if values else None


def _load_signatures(saved_model: str) -> Callable[[str, str], Signature]:
    """Returns a function that gives the signature of a name, called with one input."""
    sys.modules["sfm_tf"] = None  # type: ignore[assignment]  # Python's way to forbid an import
    import tensorflow as tf

    loaded = tf.saved_model.load(saved_model)

    def array(values: Any) -> np.ndarray:
        if values.dtype == tf.string:
            return np.stack([tf.io.decode_png(file).numpy() for file in values])
        return values.numpy()

    def find(name: str, input_name: str) -> Signature:
        run = loaded.signatures[name]

        def signature(examples: np.ndarray) -> dict[str, np.ndarray]:
            outputs = run(**{input_name: tf.constant(examples)})
            return {output: array(values) for output, values in outputs.items()}

        return signature

    return find


def main(arguments: list[str]) -> None:
    """Does what the request in a folder asks for, the measurements first."""
    folder = pathlib.Path(arguments[0])
    request = json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8"))
    find = _load_signatures(request["saved_model"])

    def examples(input_name: str) -> np.ndarray:
        return np.load(folder / f"{input_name}.npy", mmap_mode="r", allow_pickle=False)

    timing = request["timing"]
    performance = measure_performance(
        find(timing["signature"], timing["input_name"]),
        examples(timing["input_name"]),
        timing["batch_sizes"],
        timing["seconds"],
        timing["most_calls"],
    )
    (folder / PERFORMANCE_FILE).write_text(json.dumps(performance), encoding="utf-8")
    for number, asked in enumerate(request["passes"]):
        answer_in_batches(
            find(asked["signature"], asked["input_name"]),
            examples(asked["input_name"])[: asked["count"]],
            asked["batch_size"],
            str(folder / str(number)),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
