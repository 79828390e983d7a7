"""TensorFlow Serving's gRPC services, as one function from a message to an answer.

`PredictionService` has Predict and GetModelMetadata, `ModelService` has GetModelStatus; the other
methods are UNIMPLEMENTED. Messages come and go as bytes, so that whoever speaks gRPC need not know
them.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

import numpy as np
import tensorflow as tf
from google.protobuf import message
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from sfm_tf.serving.prediction_service import (
    Code,
    ModelRepository,
    Predict,
    RequestError,
    RequestLimits,
    ServedModel,
    Signature,
    check_declaration,
    check_names,
    make_prediction,
)

SERVICES = ("/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/")
"""What the paths of the methods start with."""

_SIGNATURE_DEF = "signature_def"  # The one kind of metadata that TensorFlow Serving has.


class GrpcApi:
    """Answers gRPC requests."""

    def __init__(
        self, repository: ModelRepository, predict: Predict, limits: RequestLimits
    ) -> None:
        """Makes the services.

        Args:
            repository: The served models.
            predict: Runs a checked request.
            limits: What one request may ask for.
        """
        self._repository, self._predict, self._limits = repository, predict, limits
        prediction_service, model_service = SERVICES
        self._methods: Mapping[str, Callable[[bytes], Awaitable[message.Message]]] = {
            prediction_service + "Predict": self._answer_predict,
            prediction_service + "GetModelMetadata": self._answer_metadata,
            model_service + "GetModelStatus": self._answer_status,
        }

    async def answer(self, method: str, request: bytes) -> tuple[int, str, bytes]:
        """Answers a request, whatever it is.

        Args:
            method: Path of the method, such as `/tensorflow.serving.PredictionService/Predict`.
            request: The serialized message.

        Returns:
            Number of the `grpc.StatusCode`, 0 for success; why it failed; and where it did not, the
            serialized answer.
        """
        try:
            if method not in self._methods:
                raise RequestError(Code.UNIMPLEMENTED, f"This server has no {method}")
            response = await self._methods[method](request)
            return 0, "", response.SerializeToString()
        except message.DecodeError as error:
            return Code.INVALID_ARGUMENT.grpc, f"Malformed message: {error}", b""
        except RequestError as error:
            return error.code.grpc, str(error), b""
        except Exception:  # The outermost frame: the client is told, and the server goes on.
            logging.getLogger(__name__).exception("%s failed", method)
            details = "Internal error; the server's log has the details."
            return Code.INTERNAL.grpc, details, b""

    async def _answer_predict(self, serialized: bytes) -> message.Message:
        request = predict_pb2.PredictRequest.FromString(serialized)
        model = self._find(request)
        signature = model.signature(request.model_spec.signature_name)
        check_names(signature, list(request.inputs))
        inputs = {
            name: _read_tensor(name, tensor, signature.inputs[name], self._limits)
            for name, tensor in request.inputs.items()
        }
        kept = _kept_outputs(signature, request.output_filter)
        outputs = await self._predict(make_prediction(model, signature, inputs, self._limits))
        response = predict_pb2.PredictResponse(model_spec=_spec(model, signature.name))
        for name in kept:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        return response

    async def _answer_metadata(self, serialized: bytes) -> message.Message:
        request = get_model_metadata_pb2.GetModelMetadataRequest.FromString(serialized)
        model = self._find(request)
        if set(request.metadata_field) != {_SIGNATURE_DEF}:
            text = f"Expected metadata_field to be {_SIGNATURE_DEF}, the only one there is."
            raise RequestError(Code.INVALID_ARGUMENT, text)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in model.signature_defs.items():
            signatures.signature_def[name].CopyFrom(definition)
        response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=_spec(model))
        response.metadata[_SIGNATURE_DEF].Pack(signatures)
        return response

    async def _answer_status(self, serialized: bytes) -> message.Message:
        request = get_model_status_pb2.GetModelStatusRequest.FromString(serialized)
        if not request.HasField("model_spec"):
            raise RequestError(Code.INVALID_ARGUMENT, "Missing ModelSpec")
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in self._repository.statuses(*_wanted(request.model_spec)):
            added = response.model_version_status.add(version=status.version)
            added.state = get_model_status_pb2.ModelVersionStatus.State.Value(status.state)
            if status.error_message:
                added.status.error_code = tf.errors.UNKNOWN
                added.status.error_message = status.error_message
        return response

    def _find(
        self, request: predict_pb2.PredictRequest | get_model_metadata_pb2.GetModelMetadataRequest
    ) -> ServedModel:
        if not request.HasField("model_spec"):
            raise RequestError(Code.INVALID_ARGUMENT, "Missing ModelSpec")
        return self._repository.find(*_wanted(request.model_spec))


def _wanted(spec: model_pb2.ModelSpec) -> tuple[str, int | None]:
    """Returns the name and, unless any will do, the version that a request asks for."""
    if spec.version_label:
        text = f"Unrecognized servable version label: {spec.version_label}"
        raise RequestError(Code.INVALID_ARGUMENT, text)
    return spec.name, spec.version.value if spec.HasField("version") else None


def _spec(model: ServedModel, signature_name: str = "") -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=model.name, signature_name=signature_name)
    spec.version.value = model.version
    return spec


def _kept_outputs(signature: Signature, wanted: list[str]) -> list[str]:
    names = sorted(signature.outputs)
    if not set(wanted) <= set(names) or len(set(wanted)) != len(wanted):
        text = f"Invalid output_filter {', '.join(wanted)}; expected some of {', '.join(names)}."
        raise RequestError(Code.INVALID_ARGUMENT, text)
    return list(wanted) or names


def _read_tensor(
    name: str, tensor: tensor_pb2.TensorProto, spec: tf.TensorSpec, limits: RequestLimits
) -> np.ndarray:
    """Makes the array of a tensor.

    A few bytes can declare a tensor of any size, which `tf.make_ndarray` would fill with its last
    value; so what is declared is checked first.
    """
    try:
        dtype = tf.as_dtype(tensor.dtype)
    except TypeError as error:
        text = f"Input {name} is of unknown type {tensor.dtype}."
        raise RequestError(Code.INVALID_ARGUMENT, text) from error
    shape = [dimension.size for dimension in tensor.tensor_shape.dim]
    check_declaration(name, spec, dtype, shape, limits)
    try:
        return tf.make_ndarray(tensor)
    except (ValueError, TypeError) as error:
        text = f"Input {name} does not hold as many values as its shape says: {error}"
        raise RequestError(Code.INVALID_ARGUMENT, text) from error
