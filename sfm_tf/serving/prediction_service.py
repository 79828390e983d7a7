"""What a server does with a request once it is read: checks its tensors and runs the model.

Nothing here knows HTTP, JSON or gRPC; `rest_api` and `grpc_api` both end here.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from sfm_tf.serving.model_repository import ServedModel, Signature
from sfm_tf.serving.request_errors import Code, RequestError

VALUE_RANGES: Mapping[str, tuple[float, float]] = {"images": (0.0, 1.0)}
"""Smallest and largest value of an input, by its name; TensorFlow Serving would take any value."""

Outputs = Mapping[str, np.ndarray]
"""Tensors by name; those of strings are object arrays of bytes."""

_MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
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


def check_names(signature: Signature, names: Sequence[str]) -> None:
    """Raises `RequestError` unless a request names exactly the inputs of a signature."""
    sent, wanted = sorted(names), sorted(signature.inputs)
    if sent != wanted:
        extra = ",".join(sorted(set(sent) - set(wanted)))
        missing = ",".join(sorted(set(wanted) - set(sent)))
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({{{','.join(sent)}}}) != len({{{','.join(wanted)}}}). "
            f"Sent extra: {{{extra}}}. Missing but required: {{{missing}}}.",
        )


def check_declaration(
    name: str, spec: tf.TensorSpec, dtype: tf.DType, shape: Sequence[int], limits: Limits
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
    model: ServedModel, signature: Signature, inputs: Mapping[str, np.ndarray], limits: Limits
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
