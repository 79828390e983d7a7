"""Proof that a SavedModel answers as the model that was evaluated, before anyone serves it.

This is the check TFX names InfraValidator: a fresh Python process that never imports `sfm_tf` loads
the SavedModel and classifies images; its answers are compared with those of the Keras model.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.serving import fresh_process_check

LOGIT_TOLERANCE = 1e-4
"""Largest difference of a logit that is rounding: float32 and two compilations of one graph."""

SINGLE_IMAGES = 8
"""Images that are also sent one at a time, as most clients of a server do."""

KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables the fresh process inherits; nothing that steers Python or TensorFlow."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """How the answers of a SavedModel compare with those of the Keras model.

    Attributes:
        examples: Images compared.
        batch_sizes: Sizes of the batches they were sent in.
        max_logit_difference: Largest absolute difference of a logit.
        disagreeing_labels: Images whose class differs.
    """

    examples: int
    batch_sizes: tuple[int, ...]
    max_logit_difference: float
    disagreeing_labels: int


def verify_saved_model(
    folder: pathlib.Path,
    defended: DefendedModel,
    images: np.ndarray,
    batch_size: int = 64,
    timeout_seconds: float = 1800.0,
) -> Verification:
    """Compares a SavedModel, loaded by a fresh process, with the Keras model it came from.

    Both sides compute compiled, on the CPU and with the same batch sizes: quantisation turns the
    last bit of a float into a whole level, so that the rounding of a GPU, or of eager execution,
    would alone make a logit differ by some hundredths.

    Args:
        folder: The SavedModel.
        defended: The model it was exported from.
        images: Float32 images in [0, 1] of shape `(count, height, width, channels)`, at least one.
        batch_size: Largest batch tried; batches of one image are always tried too.
        timeout_seconds: How long the fresh process may take.

    Returns:
        The differences found, all within the tolerance.

    Raises:
        SfmError: If the fresh process fails or is too slow, a label differs, or a logit differs by
            more than `LOGIT_TOLERANCE`.
    """
    passes = ((batch_size, len(images)), (1, min(len(images), SINGLE_IMAGES)))
    served = _serve(folder, images, passes, timeout_seconds)
    differences, disagreeing = [], 0
    for (size, count), (logits, class_ids) in zip(passes, served, strict=True):
        expected = _keras_logits(defended, images[:count], size)
        differences.append(np.max(np.abs(logits - expected)))
        disagreeing = max(disagreeing, int(np.sum(class_ids != np.argmax(expected, axis=-1))))
    verification = Verification(
        examples=len(images),
        batch_sizes=tuple(size for size, _ in passes),
        # NumPy's maximum, unlike Python's, keeps a NaN, which then fails the check below.
        max_logit_difference=float(np.max(differences)),
        disagreeing_labels=disagreeing,
    )
    _check(verification)
    return verification


def _check(verification: Verification) -> None:
    difference = verification.max_logit_difference
    if verification.disagreeing_labels or not difference <= LOGIT_TOLERANCE:
        raise SfmError(
            "The SavedModel does not answer as the evaluated model: "
            f"{verification.disagreeing_labels} of {verification.examples} labels differ, and a "
            f"logit differs by {difference:.3g}; expected no label and at most "
            f"{LOGIT_TOLERANCE:g}. Export again."
        )


def _keras_logits(defended: DefendedModel, images: np.ndarray, batch_size: int) -> np.ndarray:
    compiled = tf.function(lambda batch: defended(batch), reduce_retracing=True)

    def signature(batch: np.ndarray) -> dict[str, tf.Tensor]:
        logits = tf.cast(compiled(tf.constant(batch)), tf.float32)
        return {"logits": logits, "class_id": tf.argmax(logits, axis=-1)}

    with tf.device("/CPU:0"):
        return fresh_process_check.classify(signature, images, batch_size)[0]


def _serve(
    folder: pathlib.Path,
    images: np.ndarray,
    passes: tuple[tuple[int, int], ...],
    timeout_seconds: float,
) -> list[tuple[np.ndarray, np.ndarray]]:
    with tempfile.TemporaryDirectory(prefix="sfm-verification-") as scratch:
        images_file = pathlib.Path(scratch, "images.npy")
        answers_file = pathlib.Path(scratch, "answers.npz")
        np.save(images_file, images, allow_pickle=False)
        arguments = [str(folder.resolve()), str(images_file), str(answers_file)]
        arguments += [f"{size}:{count}" for size, count in passes]
        _run_fresh_process(arguments, scratch, timeout_seconds)
        with np.load(answers_file, allow_pickle=False) as answers:
            return [
                (answers[f"logits_{number}"], answers[f"class_ids_{number}"])
                for number in range(len(passes))
            ]


def _run_fresh_process(arguments: list[str], folder: str, timeout_seconds: float) -> None:
    # -I isolates the interpreter from this folder, PYTHON* variables and the user's site-packages.
    command = [sys.executable, "-I", fresh_process_check.__file__, *arguments]
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
            "The SavedModel does not work in a fresh process without sfm_tf (exit status "
            f"{error.returncode}): {last_line}"
        ) from error
