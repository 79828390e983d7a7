"""The SavedModel of a defended model: all that a server needs, nothing only Python can run."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from sfm_tf.artifacts.atomic_files import write_text
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel, in_precision
from sfm_tf.serving.signatures import build_archive

CLASS_NAMES_FILE = "assets.extra/class_names.json"
"""Where the names of the classes stand in a SavedModel, as a JSON list in the order of the logits.

`assets.extra` is TensorFlow Serving's place for files that travel with a version but that no op of
the graph reads; a tracked asset would need an op that reads it.
"""

PRECISIONS = ("float32", "bfloat16")
"""What a served model may compute in."""

PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
"""Ops that call back into the Python process that traced them, which a server does not have."""


def op_types(folder: pathlib.Path) -> Iterator[str]:
    """Yields the type of every op of a SavedModel, in its graphs and in their function libraries.

    Args:
        folder: The SavedModel, the folder that holds `saved_model.pb`.
    """
    saved_model = saved_model_pb2.SavedModel()
    saved_model.ParseFromString((folder / "saved_model.pb").read_bytes())
    for meta_graph in saved_model.meta_graphs:
        yield from (node.op for node in meta_graph.graph_def.node)
        for function in meta_graph.graph_def.library.function:
            yield from (node.op for node in function.node_def)


def check_no_python_ops(folder: pathlib.Path) -> None:
    """Raises `SfmError` if a SavedModel has an op that only the Python process here can run."""
    found = sorted(PYTHON_OPS.intersection(op_types(folder)))
    if found:
        raise SfmError(
            f"The model cannot be served: it has {', '.join(found)} ops, which call back into "
            "Python; write its pre-processing with TensorFlow ops."
        )


def export_saved_model(
    defended: DefendedModel,
    class_names: Sequence[str],
    folder: pathlib.Path,
    precision: str = "float32",
) -> None:
    """Writes a model as SavedModel with the names of its classes.

    Args:
        defended: The model that was evaluated, masker and pre-processing included.
        class_names: Names of the classes in the order of the logits.
        folder: Folder to write; it must not exist yet, and its parent must.
        precision: One of `PRECISIONS`; what the layers of classifier and masker compute in. Inputs
            and outputs are float32 in either; `compare_precision` says what the answers lose.

    Raises:
        SfmError: If the folder exists, the precision is unknown, or the model holds an op that
            calls back into Python.
    """
    if folder.exists():
        raise SfmError(f"Cannot export to {folder}: it exists already; name a new folder.")
    build_archive(served_model(defended, precision)).write_out(str(folder), verbose=False)
    check_no_python_ops(folder)
    class_names_file = folder / CLASS_NAMES_FILE
    class_names_file.parent.mkdir()
    write_text(class_names_file, json.dumps(list(class_names), indent=2) + "\n")


def served_model(defended: DefendedModel, precision: str) -> DefendedModel:
    """Returns the model itself or, for another precision than float32, a copy that computes in it.

    Raises:
        SfmError: If the precision is none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise SfmError(f"Unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}.")
    return defended if precision == "float32" else in_precision(defended, precision)


@dataclasses.dataclass(frozen=True)
class PrecisionDifference:
    """How the answers in another precision compare with those in float32.

    Attributes:
        precision: The other precision.
        examples: Images compared.
        disagreeing_labels: Images whose class differs.
        max_logit_difference: Largest absolute difference of a logit; NaN if a logit is one.
        accuracy: Share of the images whose class is their label, in the other precision.
        float32_accuracy: The same in float32.
    """

    precision: str
    examples: int
    disagreeing_labels: int
    max_logit_difference: float
    accuracy: float
    float32_accuracy: float


def compare_precision(
    defended: DefendedModel,
    precision: str,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 64,
) -> PrecisionDifference:
    """Compares a model with what `export_saved_model` would export of it in another precision.

    Args:
        defended: The model that was evaluated.
        precision: One of `saved_model.PRECISIONS`.
        images: Float32 in [0, 1], shape `(count, height, width, channels)`, at least one.
        labels: Their classes, int64 of shape `(count,)`.
        batch_size: Images classified at a time.

    Raises:
        SfmError: If there is no image, their number is not that of the labels, or the precision is
            unknown.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise SfmError(
            f"Cannot compare {precision} with float32 on {len(images)} images with {len(labels)} "
            "labels; expected a label for each of at least one image."
        )
    expected = _logits(defended, images, batch_size)
    found = _logits(served_model(defended, precision), images, batch_size)
    expected_classes, found_classes = np.argmax(expected, axis=-1), np.argmax(found, axis=-1)
    return PrecisionDifference(
        precision=precision,
        examples=len(images),
        disagreeing_labels=int(np.sum(expected_classes != found_classes)),
        max_logit_difference=float(np.max(np.abs(expected - found))),
        accuracy=float(np.mean(found_classes == labels)),
        float32_accuracy=float(np.mean(expected_classes == labels)),
    )


def _logits(defended: DefendedModel, images: np.ndarray, batch_size: int) -> np.ndarray:
    compiled = tf.function(lambda batch: defended(batch), reduce_retracing=True)
    starts = range(0, len(images), batch_size)
    batches = [tf.constant(images[start : start + batch_size]) for start in starts]
    return np.concatenate([tf.cast(compiled(batch), tf.float32).numpy() for batch in batches])
