"""The models that a server holds, and what it does with a request once it is read.

A repository loads the newest version of each model. A request's tensors are checked, merged with
those of others, and run. Nothing here knows HTTP, JSON or gRPC; `rest_api` and `grpc_api` end here.
"""

import dataclasses
import enum
import itertools
import math
import pathlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.model_client import VersionStatus

_LONGEST = 500  # gRPC sends it in a header, and clients may have put much of it together.


class Code(enum.Enum):
    """A reason for a refusal: the number of gRPC's status code, and HTTP's status for it.

    The pairs are those of TensorFlow Serving's `ToHTTPStatusCode`, save for two that HTTP has a
    status of its own for: TOO_LARGE, where gRPC says RESOURCE_EXHAUSTED of a message over the
    limit, and UNSUPPORTED_MEDIA_TYPE, which only HTTP can have.
    """

    INVALID_ARGUMENT = (3, 400)
    NOT_FOUND = (5, 404)
    TOO_LARGE = (8, 413)
    FAILED_PRECONDITION = (9, 400)
    UNIMPLEMENTED = (12, 501)
    UNSUPPORTED_MEDIA_TYPE = (12, 415)
    INTERNAL = (13, 500)
    UNAVAILABLE = (14, 503)

    @property
    def grpc(self) -> int:
        """Number of the `grpc.StatusCode`."""
        return self.value[0]

    @property
    def http(self) -> int:
        """HTTP status."""
        return self.value[1]


class RequestError(Exception):
    """A request that is refused; unlike `SfmError`, a client's mistake and told to the client."""

    def __init__(self, code: Code, message: str) -> None:
        """Makes a refusal.

        Args:
            code: Its reason.
            message: One line for the client, cut off where it is long.
        """
        super().__init__(message[:_LONGEST])
        self.code = code


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

    def signature(self, name: str) -> Signature:
        """Returns the function of that name, or the default one where the name is empty.

        Raises:
            RequestError: If there is none.
        """
        name = name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
        if name not in self.signatures:
            text = f'Serving signature key "{name}" not found.'
            raise RequestError(Code.FAILED_PRECONDITION, text)
        return self.signatures[name]


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
        """Returns the state of a model's versions, the newest first: AVAILABLE, or END and why.

        Args:
            name: Name of the model.
            version: Number of the one version asked for; None for all.

        Raises:
            RequestError: If there is none.
        """
        known = [VersionStatus(key, "END", text) for key, text in self._failures_of(name).items()]
        if name in self._served:
            known.append(VersionStatus(self._served[name].version, "AVAILABLE", ""))
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


VALUE_RANGES: Mapping[str, tuple[float, float]] = {"images": (0.0, 1.0)}
"""Smallest and largest value of an input, by its name; TensorFlow Serving would take any value."""

Outputs = Mapping[str, np.ndarray]
"""Tensors by name; those of strings are object arrays of bytes."""

_MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """How much one request may ask for.

    Attributes:
        body_bytes: Size of a request, and of each numeric tensor in it.
        batch_size: Examples in a request, and in the batch that requests are merged to.
        json_lists: Lists and objects in a JSON document: an empty one takes two bytes to send and
            some 70 to hold.
    """

    body_bytes: int = 64 * _MEBIBYTE
    batch_size: int = 128
    json_lists: int = 4_000_000


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A checked request.

    Attributes:
        model: The version that is to answer.
        signature: Which of its functions.
        inputs: Tensors that fit the signature.
    """

    model: ServedModel
    signature: Signature
    inputs: Mapping[str, np.ndarray]

    @property
    def size(self) -> int:
        """Examples in it; 1 where the signature has no batch dimension."""
        if not self.signature.is_batched:
            return 1
        return len(next(iter(self.inputs.values())))


Predict = Callable[[Prediction], Awaitable[Outputs]]
"""Runs a checked request; raises `RequestError` where the model fails on it."""


def check_names(signature: Signature, names: Sequence[str]) -> None:
    """Raises `RequestError` unless a request names exactly the inputs of a signature."""
    sent, wanted = sorted(names), sorted(signature.inputs)
    if sent != wanted:
        text = f"Sent the inputs {', '.join(sent) or 'none'}; expected {', '.join(wanted)}."
        raise RequestError(Code.INVALID_ARGUMENT, text)


def check_declaration(
    name: str, spec: tf.TensorSpec, dtype: tf.DType, shape: Sequence[int], limits: RequestLimits
) -> None:
    """Checks what a tensor is said to be, before room is made for it.

    Args:
        name: Name of the input.
        spec: What the signature takes.
        dtype: What is sent.
        shape: Sizes of what is sent.
        limits: What one request may ask for.

    Raises:
        RequestError: If it does not fit, or is too large.
    """
    if dtype != spec.dtype:
        message = f"Input {name} is of type {dtype.name}; expected {spec.dtype.name}."
        raise RequestError(Code.INVALID_ARGUMENT, message)
    if min(shape, default=0) < 0 or not spec.shape.is_compatible_with(shape):
        message = f"Input {name} has shape {_text(shape)}; expected {_text(spec.shape)}."
        raise RequestError(Code.INVALID_ARGUMENT, message)
    if spec.shape.rank and spec.shape[0] is None and shape[0] > limits.batch_size:
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"Task size {shape[0]} is larger than maximum input batch size {limits.batch_size}",
        )
    if math.prod(shape) * dtype.size > limits.body_bytes:
        message = f"Input {name} takes more than {limits.body_bytes} bytes; send fewer examples."
        raise RequestError(Code.TOO_LARGE, message)


def _text(shape: tf.TensorShape | Sequence[int]) -> str:
    if isinstance(shape, tf.TensorShape) and shape.rank is None:
        return "[?...]"
    return "[" + ",".join("?" if size is None else str(size) for size in shape) + "]"


def make_prediction(
    model: ServedModel,
    signature: Signature,
    inputs: Mapping[str, np.ndarray],
    limits: RequestLimits,
) -> Prediction:
    """Checks the tensors of a request.

    Args:
        model: The version that is to answer.
        signature: Which of its functions.
        inputs: The tensors that were sent.
        limits: What one request may ask for.

    Raises:
        RequestError: If a tensor is missing, of another type or shape, too large, not finite, or
            holds values outside the range that `VALUE_RANGES` gives for its name.
    """
    check_names(signature, list(inputs))
    for name, values in inputs.items():
        dtype = tf.string if values.dtype == object else tf.as_dtype(values.dtype)
        check_declaration(name, signature.inputs[name], dtype, values.shape, limits)
        if dtype.is_floating:
            _check_values(name, values)
    if signature.is_batched and len({len(values) for values in inputs.values()}) != 1:
        message = "Batching input tensors must have equal 0th-dimension size."
        raise RequestError(Code.INVALID_ARGUMENT, message)
    return Prediction(model, signature, inputs)


def _check_values(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        message = f"Input {name} holds NaN or infinite values; expected finite ones."
        raise RequestError(Code.INVALID_ARGUMENT, message)
    least, most = VALUE_RANGES.get(name, (-math.inf, math.inf))
    if values.size and not (least <= values.min() and values.max() <= most):
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"Input {name} holds values from {values.min():g} to {values.max():g}; expected "
            f"values in [{least:g}, {most:g}]; divide 8-bit pixels by 255.",
        )


def _run(signature: Signature, inputs: Mapping[str, np.ndarray]) -> Outputs:
    tensors = {
        name: tf.constant(values, signature.inputs[name].dtype) for name, values in inputs.items()
    }
    try:
        return {name: output.numpy() for name, output in signature.run(**tensors).items()}
    except tf.errors.InvalidArgumentError as error:
        raise RequestError(Code.INVALID_ARGUMENT, _first_line(error)) from error
    except tf.errors.OpError as error:
        raise RequestError(Code.INTERNAL, _first_line(error)) from error


def _first_line(error: tf.errors.OpError) -> str:
    return (error.message.strip().splitlines() or ["no message"])[0]


def run_merged(
    predictions: Sequence[Prediction], batch_size: int, run_batch: Callable[..., Outputs] = _run
) -> list[Outputs | RequestError]:
    """Runs requests that came at about the same time, those to one signature as one batch.

    Args:
        predictions: The requests.
        batch_size: Most examples in a batch.
        run_batch: Runs a signature on tensors.

    Returns:
        For each request, in order, its outputs or why it failed. One that fails does not fail those
        it was merged with.
    """
    results: list[Outputs | RequestError | None] = [None] * len(predictions)
    for members in _batches(predictions, batch_size):
        answers = _run_batch([predictions[member] for member in members], run_batch)
        for member, answer in zip(members, answers, strict=True):
            results[member] = answer
    return results


def _batches(predictions: Sequence[Prediction], batch_size: int) -> Iterator[list[int]]:
    """Yields the places of the requests that are run together."""

    def key(place: int) -> tuple[int, str]:
        return id(predictions[place].model), predictions[place].signature.name

    for _, group in itertools.groupby(sorted(range(len(predictions)), key=key), key):
        batch: list[int] = []
        for place in group:
            size = sum(predictions[member].size for member in batch)
            fits = size + predictions[place].size <= batch_size
            if batch and not (fits and predictions[place].signature.is_batched):
                yield batch
                batch = []
            batch.append(place)
        yield batch


def _run_batch(
    predictions: Sequence[Prediction], run_batch: Callable[..., Outputs]
) -> list[Outputs | RequestError]:
    signature = predictions[0].signature
    inputs: Mapping[str, np.ndarray] = predictions[0].inputs
    if len(predictions) > 1:
        inputs = {
            name: np.concatenate([prediction.inputs[name] for prediction in predictions])
            for name in signature.inputs
        }
    try:
        outputs = run_batch(signature, inputs)
    except RequestError as error:
        if len(predictions) == 1:
            return [error]
        return [_run_batch([prediction], run_batch)[0] for prediction in predictions]
    if len(predictions) == 1:
        return [outputs]
    ends = np.cumsum([prediction.size for prediction in predictions])[:-1]
    parts = {name: np.split(values, ends) for name, values in outputs.items()}
    return [{name: parts[name][place] for name in parts} for place in range(len(predictions))]
