"""Proof that a SavedModel answers as the model that was evaluated, before anyone serves it.

This is the check TFX names InfraValidator: a fresh Python process that never imports `sfm_tf` loads
the SavedModel and sends the evaluated images through each of its signatures; the answers are
compared with those of the Keras model. The same process measures latency and memory.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from sfm_tf.choices import PIXEL_LEVELS
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.serving.agreement import CLASS_ID, PNG_TOLERANCE, TOLERANCE, Agreement, compare_answers
from sfm_tf.serving.fresh_process import Pass, answer_in_fresh_process
from sfm_tf.serving.performance import Performance
from sfm_tf.serving.signatures import (
    BYTES_SIGNATURE_NAME,
    EXPLAIN_SIGNATURE_NAME,
    SIGNATURE_NAME,
)

INPUT_NAMES: Mapping[str, str] = {
    SIGNATURE_NAME: "images",
    BYTES_SIGNATURE_NAME: "image_bytes",
    EXPLAIN_SIGNATURE_NAME: "images",
}
"""The signatures that are compared, with the name of their input."""

SINGLE_IMAGES = 8
"""Images that are also sent one at a time, as most clients of a server do."""

_START_SECONDS = 600.0
_SECONDS_PER_IMAGE = 2.0  # For each signature: only a process that hangs is to be stopped.


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


def verify_saved_model(
    folder: pathlib.Path,
    defended: DefendedModel,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 64,
    required_signatures: Sequence[str] = tuple(INPUT_NAMES),
    same_arithmetic: bool = True,
    timeout_seconds: float | None = None,
) -> Verification:
    """Compares a SavedModel, loaded by a fresh process, with the Keras model it came from.

    Args:
        folder: The SavedModel.
        defended: The model that was evaluated.
        images: Float32 images in [0, 1] of shape `(count, height, width, channels)`, at least one.
            `predict_bytes` gets them as PNG files, which is exact for images of 8 bits.
        labels: Their classes, integers of shape `(count,)`.
        batch_size: Largest batch sent; batches of one image are always sent too.
        required_signatures: Signatures that have to be there. Others of `INPUT_NAMES` are compared
            where they are.
        same_arithmetic: Whether the SavedModel computes in float32 as the Keras model does. For
            one that computes in 16 bits differences are told, and only NaN is refused.
        timeout_seconds: How long the fresh process may take; by default so long that only one that
            hangs is stopped.

    Returns:
        What was found, all differences within the tolerance.

    Raises:
        SfmError: If a required signature is missing, the fresh process fails or is too slow, or
            the answers under a signature differ: a label at all, a value by more than `TOLERANCE`.
    """
    names = _compared_signatures(folder, required_signatures)
    sizes = {batch_size: len(images), **({1: SINGLE_IMAGES} if batch_size > 1 else {})}
    passes = [
        Pass(name, INPUT_NAMES[name], size, min(len(images), count))
        for name in names
        for size, count in sizes.items()
    ]
    timeout = timeout_seconds or _START_SECONDS + _SECONDS_PER_IMAGE * len(names) * len(images)
    shown, sent = _inputs(images, names)
    with tempfile.TemporaryDirectory(prefix="sfm-verification-") as scratch:
        found = answer_in_fresh_process(folder, sent, passes, pathlib.Path(scratch), timeout)
        verification = Verification(
            examples=len(images),
            batch_sizes=tuple(sizes),
            accuracy=float(np.mean(found.answers[0][CLASS_ID] == labels)),
            signatures=_compare(passes, found.answers, defended, shown),
            performance=found.performance,
        )
    _check(verification, same_arithmetic)
    return verification


def _compared_signatures(folder: pathlib.Path, required: Sequence[str]) -> list[str]:
    present = _signature_names(folder)
    expected = list(dict.fromkeys([SIGNATURE_NAME, *required]))
    if not set(expected) <= set(present):
        raise SfmError(
            f"The SavedModel has the signatures {', '.join(present) or 'none'}; expected "
            f"{', '.join(expected)}. Export again."
        )
    return [name for name in INPUT_NAMES if name in present]


def _signature_names(folder: pathlib.Path) -> list[str]:
    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString((folder / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise SfmError(f"Cannot read a SavedModel in {folder} ({error}); export again.") from error
    names = {name for graph in saved_model.meta_graphs for name in graph.signature_def}
    return sorted(name for name in names if not name.startswith("__"))


def _inputs(
    images: np.ndarray, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the images that each input shows, and what is sent to it."""
    shown = {INPUT_NAMES[SIGNATURE_NAME]: images}
    sent = dict(shown)
    if BYTES_SIGNATURE_NAME in names:
        levels = np.round(images * PIXEL_LEVELS).astype(np.uint8)
        bytes_input = INPUT_NAMES[BYTES_SIGNATURE_NAME]
        shown[bytes_input] = levels.astype(np.float32) / np.float32(PIXEL_LEVELS)
        # An array of kind S drops zeros at the end of a string, but no PNG ends with one.
        sent[bytes_input] = np.array([tf.io.encode_png(image).numpy() for image in levels])
    return shown, sent


def _compare(
    passes: Sequence[Pass],
    answers: Sequence[Mapping[str, np.ndarray]],
    defended: DefendedModel,
    shown: Mapping[str, np.ndarray],
) -> dict[str, Agreement]:
    """Returns the worse of the agreements that a signature has in its passes."""
    agreements: dict[str, Agreement] = {}
    for asked, answered in zip(passes, answers, strict=True):
        images = shown[asked.input_name][: asked.count]
        found = compare_answers(asked.signature, answered, defended, images, asked.batch_size)
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
            f"Expected no label to differ, and values by at most {TOLERANCE:g}, "
            f"{PNG_TOLERANCE:.3g} in PNG files. Export again."
        )


def _complaint(agreement: Agreement, examples: int, same_arithmetic: bool) -> str:
    excesses = agreement.excesses()
    if not same_arithmetic:
        not_numbers = [name for name, value in excesses.items() if not np.isfinite(value)]
        return f"{', '.join(not_numbers)} hold NaN" if not_numbers else ""
    if not (agreement.disagreeing_labels or excesses):
        return ""
    values = "".join(f", {name} by {value:.3g}" for name, value in excesses.items())
    return f"{agreement.disagreeing_labels} of {examples} labels differ{values}"
