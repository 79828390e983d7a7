"""Proof that a SavedModel answers as the model that was evaluated, before anyone serves it.

This is the check that TFX calls InfraValidator: a fresh Python process that never imports `sfm_tf`
loads the SavedModel and sends the evaluated images through each of its signatures; the answers are
compared with those of the Keras model. A signature that takes files gets files of other sizes than
the model's, and has to answer as the Keras model does to what ingest makes of them. The same
process measures latency and memory. What it runs is `fresh_process_check.py`, a file of its own
because it must work without this library.
"""

import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.significance import wilson_interval
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.serving import fresh_process_check
from sfm_tf.serving.original_files import ingest_files, make_files
from sfm_tf.serving.saved_model import signature_defs
from sfm_tf.serving.signatures import (
    BYTES_SIGNATURE_NAME,
    EXPLAIN_SIGNATURE_NAME,
    SIGNATURE_NAME,
)
from sfm_tf.settings import PIXEL_LEVELS

TOLERANCE = 1e-4
"""Largest difference of a value that is rounding: float32 and two compilations of one graph."""

PNG_TOLERANCE = 0.5 / PIXEL_LEVELS + TOLERANCE
"""The same where a value in [0, 1] went through a file with 8 bits."""

SINGLE_IMAGES = 8
"""Images that are also sent one at a time, as most clients of a server do."""

MEASURED_BATCH_SIZES = (1, 8, 64)

SECONDS_PER_BATCH_SIZE = 5.0
"""How long calls of one batch size are repeated."""

MOST_CALLS = 100
"""Calls of one batch size that are timed at most."""

KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables the fresh process inherits; nothing that steers Python or TensorFlow."""

_START_SECONDS = 600.0
_SECONDS_PER_IMAGE = 2.0  # For each signature: only a process that hangs is to be stopped.
_MEGABYTE = 10**6
_CONFIDENCE = 0.999
_LARGEST_NUMBER = float(np.finfo(np.float64).max)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How the answers of a signature compare with those of the Keras model.

    Attributes:
        disagreeing_labels: Images whose class differs.
        max_differences: For every other output the largest absolute difference of a value; NaN
            where one is not a number.
        own_disagreeing_labels: Images whose class the Keras model itself changes when it is asked
            a second time.
        own_differences: For every other output, by how much it differs from itself then.
    """

    disagreeing_labels: int
    max_differences: Mapping[str, float]
    own_disagreeing_labels: int = 0
    own_differences: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def random_outputs(self) -> frozenset[str]:
        """The outputs that the Keras model gives otherwise when it is asked a second time."""
        # Written so that NaN is none.
        return frozenset(
            name for name, difference in self.own_differences.items() if difference > TOLERANCE
        )

    def worse(self, other: "Agreement") -> "Agreement":
        """Returns the larger figures of two comparisons of one signature."""
        return Agreement(
            max(self.disagreeing_labels, other.disagreeing_labels),
            _larger(self.max_differences, other.max_differences),
            max(self.own_disagreeing_labels, other.own_disagreeing_labels),
            _larger(self.own_differences, other.own_differences),
        )

    def excesses(self) -> dict[str, float]:
        """Returns the differences that are neither rounding nor chance, by output."""
        # Written so that NaN, which compares with nothing, is one.
        return {
            name: difference
            for name, difference in self.max_differences.items()
            if not difference <= self._tolerance(name)
        }

    def differs_too_often(self, examples: int) -> bool:
        """Tells whether labels differ, or for a random model, more often than by its chance.

        The classes of a random model differ as often from those of its export as from its own when
        it is asked again, but for chance. So the two shares are compared by their 99.9% intervals.

        Args:
            examples: Images that were compared.
        """
        if not self.random_outputs:
            return self.disagreeing_labels > 0
        found, own = (
            wilson_interval(min(count, examples), examples, _CONFIDENCE)
            for count in (self.disagreeing_labels, self.own_disagreeing_labels)
        )
        return found[0] > own[1]

    def _tolerance(self, output: str) -> float:
        if output in self.random_outputs:
            return _LARGEST_NUMBER
        return PNG_TOLERANCE if output in _KEPT_IN_PNG else TOLERANCE


def _larger(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    # NumPy's maximum, unlike Python's, keeps a NaN.
    return {name: float(np.maximum(value, second[name])) for name, value in first.items()}


@dataclasses.dataclass(frozen=True)
class BatchPerformance:
    """What calls with batches of one size needed, after a warm-up.

    Attributes:
        batch_size: Images in a batch.
        calls: How many calls were timed.
        median_seconds: Median duration of a call.
        p95_seconds: Duration that 95 of 100 calls did not exceed.
        peak_memory_bytes: Most memory that the process had had resident by then, TensorFlow and
            the smaller batches included; None where the system does not tell.
    """

    batch_size: int
    calls: int
    median_seconds: float
    p95_seconds: float
    peak_memory_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Performance:
    """What a fresh process measured on the CPU.

    Attributes:
        cpu_count: Processors of the machine.
        loaded_memory_bytes: Most memory that the process had had resident before the first call.
        batches: One entry for each batch size, in growing order.
    """

    cpu_count: int
    loaded_memory_bytes: int | None
    batches: tuple[BatchPerformance, ...]


def read_performance(value: Mapping[str, Any]) -> Performance:
    """Returns what `dataclasses.asdict` made of a `Performance`, or JSON of that."""
    batches = tuple(BatchPerformance(**batch) for batch in value["batches"])
    return Performance(**{**value, "batches": batches})


def describe_performance(performance: Performance) -> str:
    """Returns one line on latency and memory at each batch size."""
    batches = "; ".join(_describe_batch(batch) for batch in performance.batches)
    return f"on {performance.cpu_count} CPUs: {batches}"


def _describe_batch(batch: BatchPerformance) -> str:
    peak = batch.peak_memory_bytes
    memory = "not measured" if peak is None else f"{peak / _MEGABYTE:,.0f} MB"
    median, p95 = (1000.0 * seconds for seconds in (batch.median_seconds, batch.p95_seconds))
    latency = f"median {median:,.1f} ms, p95 {p95:,.1f} ms"
    return f"batch {batch.batch_size}: {latency}, peak memory {memory}"


@dataclasses.dataclass(frozen=True)
class Verification:
    """How a SavedModel answered.

    Attributes:
        examples: Images sent through each signature.
        batch_sizes: Sizes of the batches they were sent in.
        accuracy: Share of the images that `serving_default` was right on.
        signatures: How the answers compare with those of the Keras model, by signature.
        performance: How long `serving_default` takes, and how much memory.
    """

    examples: int
    batch_sizes: tuple[int, ...]
    accuracy: float
    signatures: Mapping[str, Agreement]
    performance: Performance


@dataclasses.dataclass(frozen=True)
class Pass:
    """Examples that the fresh process sends to a signature.

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


Answers = Mapping[str, np.ndarray]
"""The outputs of a pass by name, all batches joined; PNG files are decoded, uint8."""


def verify_saved_model(
    folder: pathlib.Path,
    defended: DefendedModel,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 64,
    same_arithmetic: bool = True,
) -> Verification:
    """Compares a SavedModel, loaded by a fresh process, with the Keras model it came from.

    Args:
        folder: The SavedModel.
        defended: The model that was evaluated.
        images: Float32 images in [0, 1] of shape `(count, height, width, channels)`, at least one.
            `predict_bytes` gets files of other sizes made of them; its answers are compared with
            those to what ingest makes of the files.
        labels: Their classes, integers of shape `(count,)`.
        batch_size: Largest batch sent; batches of one image are always sent too.
        same_arithmetic: Whether the SavedModel computes in float32 as the Keras model does. For
            one that computes in 16 bits differences are told, and only NaN is refused.

    Returns:
        What was found, all differences within the tolerance. What the Keras model answers otherwise
        when it is asked again, because it draws, is only compared by how often the class differs.

    Raises:
        SfmError: If a signature is missing, the fresh process fails or is too slow, or the answers
            under a signature differ: a label at all, a value by more than `TOLERANCE`.
    """
    _check_signatures(folder)
    sizes = {batch_size: len(images), **({1: SINGLE_IMAGES} if batch_size > 1 else {})}
    passes = [
        Pass(name, input_name, size, min(len(images), count))
        for name, (input_name, _) in _SIGNATURES.items()
        for size, count in sizes.items()
    ]
    timeout = _START_SECONDS + _SECONDS_PER_IMAGE * len(_SIGNATURES) * len(images)
    files = make_files(np.round(images * PIXEL_LEVELS).astype(np.uint8))
    # An array of kind S drops zeros at the end of a string, but no PNG or JPEG ends with one.
    sent = {"images": images, "image_bytes": np.array(files)}
    shown = {"images": images, "image_bytes": ingest_files(files, images.shape[1:])}
    with tempfile.TemporaryDirectory(prefix="sfm-verification-") as scratch:
        answers, performance = answer_in_fresh_process(
            folder, sent, passes, pathlib.Path(scratch), timeout
        )
        verification = Verification(
            examples=len(images),
            batch_sizes=tuple(sizes),
            accuracy=float(np.mean(answers[0][_CLASS_ID] == labels)),
            signatures=_compare_passes(passes, answers, defended, shown),
            performance=performance,
        )
    _check(verification, same_arithmetic)
    return verification


def _check_signatures(folder: pathlib.Path) -> None:
    present = sorted(name for name in signature_defs(folder) if not name.startswith("__"))
    if not set(_SIGNATURES) <= set(present):
        raise SfmError(
            f"The SavedModel has the signatures {', '.join(present) or 'none'}; expected "
            f"{', '.join(_SIGNATURES)}. Export again."
        )


def _compare_passes(
    passes: Sequence[Pass],
    answers: Sequence[Answers],
    defended: DefendedModel,
    shown: Mapping[str, np.ndarray],
) -> dict[str, Agreement]:
    """Returns the worse of the agreements that a signature has in its passes."""
    keras_outputs = {
        name: compiled_outputs(name, defended, shown[input_name].shape[1:])
        for name, (input_name, _) in _SIGNATURES.items()
    }
    agreements: dict[str, Agreement] = {}
    for asked, answered in zip(passes, answers, strict=True):
        images = shown[asked.input_name][: asked.count]
        compute = keras_outputs[asked.signature]
        found = compare_answers(asked.signature, answered, compute, images, asked.batch_size)
        before = agreements.get(asked.signature, found)
        agreements[asked.signature] = before.worse(found)
    return agreements


def _check(verification: Verification, same_arithmetic: bool) -> None:
    found = {
        name: _complaint(agreement, verification.examples, same_arithmetic)
        for name, agreement in verification.signatures.items()
    }
    complaints = [f"under {name} {complaint}" for name, complaint in found.items() if complaint]
    if complaints:
        raise SfmError(
            f"The SavedModel does not answer as the evaluated model: {'; '.join(complaints)}. "
            "Expected no label to differ, or of a model that draws at random, no more than when it "
            f"is asked twice, and values by at most {TOLERANCE:g}, {PNG_TOLERANCE:.3g} in PNG "
            "files. Export again."
        )


def _complaint(agreement: Agreement, examples: int, same_arithmetic: bool) -> str:
    excesses = agreement.excesses()
    if not same_arithmetic:
        not_numbers = [name for name, value in excesses.items() if not np.isfinite(value)]
        return f"{', '.join(not_numbers)} hold NaN" if not_numbers else ""
    if not (agreement.differs_too_often(examples) or excesses):
        return ""
    values = "".join(f", {name} by {value:.3g}" for name, value in excesses.items())
    own = agreement.own_disagreeing_labels
    asked_twice = f" ({own} when the model is asked twice)" if agreement.random_outputs else ""
    return f"{agreement.disagreeing_labels} of {examples} labels differ{asked_twice}{values}"


Outputs = Callable[[np.ndarray], Mapping[str, tf.Tensor]]
"""From a batch of images to the outputs of a signature, as the Keras model computes them."""


def compiled_outputs(
    signature: str, defended: DefendedModel, image_shape: tuple[int, ...]
) -> Outputs:
    """Returns what the outputs of a signature should be, as a compiled function of images.

    Args:
        signature: Name of the signature.
        defended: The model that was evaluated.
        image_shape: Height, width and channels.
    """
    _, outputs = _SIGNATURES[signature]
    return tf.function(
        lambda images: outputs(defended, images),
        input_signature=[tf.TensorSpec((None, *image_shape), tf.float32)],
    )


def compare_answers(
    signature: str, answers: Answers, compute: Outputs, images: np.ndarray, batch_size: int
) -> Agreement:
    """Compares answers to images with what the Keras model says of them, batch by batch.

    The Keras model is asked twice, because a model that draws at random does not even agree with
    itself. Whether it draws is found so, of any model.

    Both sides compute compiled, on the CPU and with the same batch sizes: quantisation turns the
    last bit of a float into a whole level, so that the rounding of a GPU, or of eager execution,
    would alone make a logit differ by some hundredths.

    Args:
        signature: Name of the signature.
        answers: Its outputs by name, for all images; those that are PNG files decoded.
        compute: What `compiled_outputs` returned for the signature.
        images: The images, or what decoding their files gives.
        batch_size: How many images were sent at a time.

    Raises:
        SfmError: If the outputs are others than those that the signature is to have.
    """
    parts: list[Agreement] = []
    for start in range(0, len(images), batch_size):
        with tf.device("/CPU:0"):
            expected, again = (
                {name: values.numpy() for name, values in compute(asked).items()}
                for asked in 2 * [images[start : start + batch_size]]
            )
        if set(answers) != set(expected):
            raise SfmError(
                f"The signature {signature} of the SavedModel gives {', '.join(sorted(answers))}; "
                f"expected {', '.join(sorted(expected))}. Export again."
            )
        served = {name: answers[name][start : start + batch_size] for name in expected}
        parts.append(Agreement(*_difference(served, expected), *_difference(again, expected)))
    return dataclasses.replace(
        functools.reduce(Agreement.worse, parts),
        disagreeing_labels=sum(part.disagreeing_labels for part in parts),
        own_disagreeing_labels=sum(part.own_disagreeing_labels for part in parts),
    )


def _difference(found: Answers, expected: Answers) -> tuple[int, dict[str, float]]:
    """Returns how many classes differ, and for every other output by how much."""
    differences = {
        name: _largest_difference(found[name], values)
        for name, values in expected.items()
        if name != _CLASS_ID
    }
    return int(np.sum(found[_CLASS_ID] != expected[_CLASS_ID])), differences


def _largest_difference(served: np.ndarray, expected: np.ndarray) -> float:
    if served.shape != expected.shape:
        return float("inf")
    scale = PIXEL_LEVELS if served.dtype == np.uint8 else 1.0
    return float(np.max(np.abs(served / scale - expected)))


def _classify(defended: DefendedModel, images: tf.Tensor) -> dict[str, tf.Tensor]:
    logits = tf.cast(defended(images), tf.float32)
    return {
        "logits": logits,
        "probabilities": tf.nn.softmax(logits),
        _CLASS_ID: tf.argmax(logits, axis=-1),
    }


def _classify_files(defended: DefendedModel, images: tf.Tensor) -> dict[str, tf.Tensor]:
    answers = _classify(defended, images)
    return {**answers, "status": tf.zeros_like(answers[_CLASS_ID])}


def _explain(defended: DefendedModel, images: tf.Tensor) -> dict[str, tf.Tensor]:
    arrays = {
        "mask": defended.mask(images),
        "masked_image": defended.masked(images),
        "defended_image": defended.defended(images),
    }
    files = {name: arrays[kept] for name, kept in _KEPT_IN_PNG.items()}
    logits = defended.classified(arrays["defended_image"])
    return {**arrays, **files, _CLASS_ID: tf.argmax(logits, axis=-1)}


_CLASS_ID = "class_id"
_KEPT_IN_PNG = {
    "mask_png_bytes": "mask",
    "masked_png_bytes": "masked_image",
    "defended_png_bytes": "defended_image",
}
_SIGNATURES: Mapping[
    str, tuple[str, Callable[[DefendedModel, tf.Tensor], dict[str, tf.Tensor]]]
] = {
    SIGNATURE_NAME: ("images", _classify),
    BYTES_SIGNATURE_NAME: ("image_bytes", _classify_files),
    EXPLAIN_SIGNATURE_NAME: ("images", _explain),
}
"""The name of each signature's input, and what the Keras model says its outputs should be."""


def answer_in_fresh_process(
    saved_model: pathlib.Path,
    inputs: Mapping[str, np.ndarray],
    passes: Sequence[Pass],
    scratch: pathlib.Path,
    timeout_seconds: float,
) -> tuple[list[Answers], Performance]:
    """Has a fresh process load a SavedModel, measure it, and answer with it, on the CPU.

    Args:
        saved_model: The SavedModel.
        inputs: Examples by name of the input; bytes as a NumPy array of kind `S`.
        passes: What to answer, at least one; the first one's signature is measured.
        scratch: Empty folder for what the two processes exchange.
        timeout_seconds: How long the process may take.

    Returns:
        The answers of each pass, mapped from files in `scratch`, so they can be read only while
        those are there; and how long the first pass's signature takes, and how much memory.

    Raises:
        SfmError: If the process fails or is too slow.
    """
    for name, examples in inputs.items():
        np.save(scratch / f"{name}.npy", examples, allow_pickle=False)
    request = {
        "saved_model": str(saved_model.resolve()),
        "timing": {
            "signature": passes[0].signature,
            "input_name": passes[0].input_name,
            "batch_sizes": MEASURED_BATCH_SIZES,
            "seconds": SECONDS_PER_BATCH_SIZE,
            "most_calls": MOST_CALLS,
        },
        "passes": [dataclasses.asdict(asked) for asked in passes],
    }
    (scratch / fresh_process_check.REQUEST_FILE).write_text(json.dumps(request), encoding="utf-8")
    _run(scratch, timeout_seconds)
    answers = [
        {
            path.name.split(".")[1]: np.load(path, mmap_mode="r", allow_pickle=False)
            for path in scratch.glob(f"{number}.*.npy")
        }
        for number in range(len(passes))
    ]
    return answers, read_performance(read_json(scratch / fresh_process_check.PERFORMANCE_FILE))


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
        last_line = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise SfmError(
            "The SavedModel does not work in a fresh process without sfm_tf "
            f"({_end(error.returncode)}): {last_line}"
        ) from error


def _end(return_code: int) -> str:
    if return_code >= 0:
        return f"exit status {return_code}"
    name = signal.Signals(-return_code).name
    hint = ", often for lack of memory" if name == "SIGKILL" else ""
    return f"ended by {name}{hint}"
