"""The SavedModels that a server answers with: the newest version of each model, as pushed.

A SavedModel is a program: loading one runs whatever ops it holds. Serve only what you exported.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from sfm_tf.errors import SfmError
from sfm_tf.serving.request_errors import Code, RequestError

_SERVE_TAG = "serve"


@dataclasses.dataclass(frozen=True)
class Signature:
    """A function of a SavedModel.

    Attributes:
        name: Its name, such as `serving_default`.
        inputs: What it takes, by name.
        outputs: What it gives, by name.
        run: The function; takes its inputs as keywords.
    """

    name: str
    inputs: Mapping[str, tf.TensorSpec]
    outputs: Mapping[str, tf.TensorSpec]
    run: Callable[..., Mapping[str, tf.Tensor]]

    @property
    def is_batched(self) -> bool:
        """Whether the first dimension of all tensors is open, so that requests can be merged."""
        specs = [*self.inputs.values(), *self.outputs.values()]
        return all(spec.shape.rank and spec.shape[0] is None for spec in specs)


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A loaded version of a model.

    Attributes:
        name: The model's name.
        version: Number of the version.
        signatures: Its functions, by name.
        signature_defs: The same as TensorFlow's own descriptions of them.
        owner: What `tf.saved_model.load` gave; the functions work only while it lives.
    """

    name: str
    version: int
    signatures: Mapping[str, Signature]
    signature_defs: Mapping[str, meta_graph_pb2.SignatureDef]
    owner: Any = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """What has become of a version; TensorFlow Serving's `ModelVersionStatus`.

    Attributes:
        version: Its number.
        state: AVAILABLE, or END where it cannot be loaded.
        error: Why not; empty where it is available.
    """

    version: int
    state: str
    error: str = ""


def version_folders(model_folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Returns the versions in a model's folder, the newest first.

    Args:
        model_folder: Folder whose sub-folders with a number for a name are versions.
    """
    if not model_folder.is_dir():
        return {}
    entries = [entry for entry in model_folder.iterdir() if entry.name.isdecimal()]
    found = {int(entry.name): entry for entry in entries if (entry / "saved_model.pb").is_file()}
    return dict(sorted(found.items(), reverse=True))


def load_version(name: str, version: int, folder: pathlib.Path) -> ServedModel:
    """Loads a SavedModel and has each of its signatures answer one example of zeros.

    Args:
        name: Name of the model.
        version: Number of the version.
        folder: The SavedModel.

    Raises:
        SfmError: If it cannot be loaded, or a signature does not answer.
    """
    try:
        loaded = tf.saved_model.load(str(folder))
        signatures = {
            key: Signature(
                key, function.structured_input_signature[1], function.structured_outputs, function
            )
            for key, function in loaded.signatures.items()
        }
        for signature in signatures.values():
            signature.run(**{key: _zeros(spec) for key, spec in signature.inputs.items()})
        return ServedModel(name, version, signatures, _read_signature_defs(folder), loaded)
    # A damaged SavedModel fails in as many ways as there are parsers in TensorFlow.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise SfmError(f"Cannot serve {folder}: {reason}; export it again.") from error


def _zeros(spec: tf.TensorSpec) -> tf.Tensor:
    sizes = [1 if size is None else size for size in spec.shape]
    if spec.dtype == tf.string:
        return tf.constant(np.full(sizes, b"", dtype=object))
    return tf.zeros(sizes, spec.dtype)


def _read_signature_defs(folder: pathlib.Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    saved_model = saved_model_pb2.SavedModel()
    saved_model.ParseFromString((folder / "saved_model.pb").read_bytes())
    graphs = [graph for graph in saved_model.meta_graphs if _SERVE_TAG in graph.meta_info_def.tags]
    return dict(graphs[0].signature_def)


class ModelRepository:
    """The newest version of each of some models, kept so by `refresh`.

    A new version takes over in one step when it has loaded; requests that hold the old one end with
    it. A version that does not load leaves the one before in its place.
    """

    def __init__(self, folders: Mapping[str, pathlib.Path]) -> None:
        """Makes a repository that has loaded nothing yet.

        Args:
            folders: Each model's folder of versions, by the model's name.
        """
        self._folders = dict(folders)
        self._served: dict[str, ServedModel] = {}
        self._failures: dict[str, dict[int, str]] = {}

    def refresh(self) -> None:
        """Loads versions that are newer, and goes back where the newest one was deleted."""
        for name, folder in self._folders.items():
            self._refresh_model(name, version_folders(folder))

    def _refresh_model(self, name: str, folders: Mapping[int, pathlib.Path]) -> None:
        failures: dict[int, str] = {}
        for version, folder in folders.items():
            if name in self._served and self._served[name].version == version:
                break
            try:
                model = load_version(name, version, folder)
            except SfmError as error:
                failures[version] = str(error)
                continue
            self._served = {**self._served, name: model}
            break
        self._failures = {**self._failures, name: failures}

    def find(self, name: str, version: int | None = None) -> ServedModel:
        """Returns the served version of a model.

        Args:
            name: Name of the model.
            version: Number of the version; None for whichever is served.

        Raises:
            RequestError: If the model, or this version of it, is not served.
        """
        model = self._served.get(name)
        if model is None or version not in (None, model.version):
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            message = f"Servable not found for request: {wanted}"
            raise RequestError(Code.NOT_FOUND, message)
        return model

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """Returns what has become of a model's versions, the newest first.

        Args:
            name: Name of the model.
            version: Number of the one version asked for; None for all.

        Raises:
            RequestError: If there is none.
        """
        known = [VersionStatus(key, "END", text) for key, text in self._failures_of(name).items()]
        if name in self._served:
            known.append(VersionStatus(self._served[name].version, "AVAILABLE"))
        wanted = [status for status in known if version in (None, status.version)]
        if not wanted:
            which = "any versions" if version is None else f"version {version}"
            raise RequestError(Code.NOT_FOUND, f"Could not find {which} of model {name}")
        return sorted(wanted, key=lambda status: status.version, reverse=True)

    def failures(self) -> list[str]:
        """Returns why versions on the disk are not served, one line each."""
        return [text for name in self._folders for text in self._failures_of(name).values()]

    def missing(self) -> list[str]:
        """Returns the names of the models of which no version is served."""
        return [name for name in self._folders if name not in self._served]

    def _failures_of(self, name: str) -> Mapping[int, str]:
        return self._failures.get(name, {})
