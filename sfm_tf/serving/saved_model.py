"""The SavedModel of a defended model: all that a server needs, nothing only Python can run."""

import json
import pathlib
from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

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


def read_saved_model(folder: pathlib.Path) -> saved_model_pb2.SavedModel:
    """Reads the description of a SavedModel.

    Args:
        folder: The folder that holds `saved_model.pb`.

    Raises:
        SfmError: If it cannot be read.
    """
    try:
        return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise SfmError(f"Cannot read a SavedModel in {folder} ({error}); export again.") from error


def signature_defs(folder: pathlib.Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """Returns TensorFlow's description of each signature of a SavedModel, sorted by name.

    Raises:
        SfmError: If it cannot be read.
    """
    graphs = read_saved_model(folder).meta_graphs
    found = {name: each for graph in graphs for name, each in graph.signature_def.items()}
    return {name: found[name] for name in sorted(found)}


def op_types(folder: pathlib.Path) -> Iterator[str]:
    """Yields the type of every op of a SavedModel, in its graphs and in their function libraries.

    Args:
        folder: The SavedModel.
    """
    for meta_graph in read_saved_model(folder).meta_graphs:
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
            and outputs are float32 in either.

    Raises:
        SfmError: If the folder exists, the precision is unknown, or the model holds an op that
            calls back into Python.
    """
    if folder.exists():
        raise SfmError(f"Cannot export to {folder}: it exists already; name a new folder.")
    if precision not in PRECISIONS:
        raise SfmError(f"Unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}.")
    served = defended if precision == "float32" else in_precision(defended, precision)
    build_archive(served).write_out(str(folder), verbose=False)
    check_no_python_ops(folder)
    class_names_file = folder / CLASS_NAMES_FILE
    class_names_file.parent.mkdir()
    write_text(class_names_file, json.dumps(list(class_names), indent=2) + "\n")
