"""A Python process that has TensorFlow but not this library, to answer with a SavedModel."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.errors import SfmError
from sfm_tf.serving import fresh_process_check
from sfm_tf.serving.performance import (
    MEASURED_BATCH_SIZES,
    MOST_CALLS,
    SECONDS_PER_BATCH_SIZE,
    Performance,
    read_performance,
)

KEPT_VARIABLES = (
    "PATH",
    "HOME",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SYSTEMROOT",
)
"""Environment variables the fresh process inherits; nothing that steers Python or TensorFlow."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """Examples to send to a signature.

    Attributes:
        signature: Name of the signature.
        input_name: Name of its one input.
        batch_size: Examples to send at a time.
        count: How many examples to send, the first ones.
    """

    signature: str
    input_name: str
    batch_size: int
    count: int


@dataclasses.dataclass(frozen=True)
class FreshAnswers:
    """What the fresh process found.

    Attributes:
        answers: For each pass its outputs by name, all batches joined. They are mapped from files,
            so they can be read only while those are there. PNG files are decoded, uint8.
        performance: How long the first pass's signature takes, and how much memory.
    """

    answers: tuple[Mapping[str, np.ndarray], ...]
    performance: Performance


def answer_in_fresh_process(
    saved_model: pathlib.Path,
    inputs: Mapping[str, np.ndarray],
    passes: Sequence[Pass],
    scratch: pathlib.Path,
    timeout_seconds: float,
) -> FreshAnswers:
    """Has a fresh process load a SavedModel, measure it, and answer with it, on the CPU.

    Args:
        saved_model: The SavedModel.
        inputs: Examples by name of the input; bytes as a NumPy array of kind `S`.
        passes: What to answer, at least one; the first one's signature is measured.
        scratch: Empty folder for what the two processes exchange.
        timeout_seconds: How long the process may take.

    Raises:
        SfmError: If the process fails or is too slow.
    """
    for name, examples in inputs.items():
        np.save(scratch / f"{name}.npy", examples, allow_pickle=False)
    request = {
        "saved_model": str(saved_model.resolve()),
        "timing": {
            "signature": passes[0].signature,
            "input": passes[0].input_name,
            "batch_sizes": MEASURED_BATCH_SIZES,
            "seconds": SECONDS_PER_BATCH_SIZE,
            "most_calls": MOST_CALLS,
        },
        "passes": [
            {
                "signature": asked.signature,
                "input": asked.input_name,
                "batch_size": asked.batch_size,
                "count": asked.count,
            }
            for asked in passes
        ],
    }
    (scratch / fresh_process_check.REQUEST_FILE).write_text(json.dumps(request), encoding="utf-8")
    _run(scratch, timeout_seconds)
    return FreshAnswers(
        tuple(_read_answers(scratch, number) for number in range(len(passes))),
        read_performance(read_json(scratch / fresh_process_check.PERFORMANCE_FILE)),
    )


def _read_answers(folder: pathlib.Path, number: int) -> dict[str, np.ndarray]:
    return {
        path.name.split(".")[1]: np.load(path, mmap_mode="r", allow_pickle=False)
        for path in folder.glob(f"{number}.*.npy")
    }


def _run(folder: pathlib.Path, timeout_seconds: float) -> None:
    # -I isolates the interpreter from this folder, PYTHON* variables and the user's site-packages.
    command = [sys.executable, "-I", fresh_process_check.__file__, str(folder)]
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    try:
        subprocess.run(
            command,
            cwd=folder,
            env=environment,
            timeout=timeout_seconds,
            capture_output=True,
            check=True,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise SfmError(
            f"The fresh process that checks the SavedModel took over {timeout_seconds:g} seconds; "
            "verify with fewer images."
        ) from error
    except subprocess.CalledProcessError as error:
        raise SfmError(
            "The SavedModel does not work in a fresh process without sfm_tf "
            f"({_end(error.returncode)}): {_last_line(error.stderr)}"
        ) from error


def _end(return_code: int) -> str:
    if return_code >= 0:
        return f"exit status {return_code}"
    name = signal.Signals(-return_code).name
    hint = ", often for lack of memory" if name == "SIGKILL" else ""
    return f"ended by {name}{hint}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
