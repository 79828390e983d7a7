"""A client of TensorFlow Serving's gRPC interface; the first use of it loads TensorFlow."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.model_client import (
    FIRST_WAIT_SECONDS,
    LARGEST_ANSWER,
    LONGEST_WAIT_SECONDS,
    ModelClient,
    Outputs,
    ServerError,
    one_line,
)


@dataclasses.dataclass(frozen=True, eq=False)
class GrpcClient(ModelClient):
    """Asks a served model over gRPC; use as a context manager, or close it.

    with GrpcClient("127.0.0.1:8500", "sfm_defended") as client:
        answers = client.classify_files(["cat.png", "dog.jpg"])

    Attributes:
        credentials: For TLS; None sends everything in the clear.
    """

    credentials: grpc.ChannelCredentials | None = None

    def __post_init__(self) -> None:
        """Opens the channel; nothing is sent. Raises `SfmError` if a setting is not usable."""
        super().__post_init__()
        if "://" in self.server or ":" not in self.server:
            raise SfmError(f"Invalid server {self.server!r}; expected one like '127.0.0.1:8500'.")
        _ = self._channel  # Now, so that threads that share the client share the channel.

    def __enter__(self) -> "GrpcClient":
        """Returns the client."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the channel."""
        self.close()

    def close(self) -> None:
        """Closes the channel; the client cannot be used any more."""
        self._channel.close()

    @functools.cached_property
    def _channel(self) -> grpc.Channel:
        options = _options(self.attempts)
        if self.credentials is None:
            return grpc.insecure_channel(self.server, options)
        return grpc.secure_channel(self.server, self.credentials, options)

    def _predict(
        self, signature_name: str, input_name: str, values: np.ndarray | Sequence[bytes]
    ) -> Outputs:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        request = self._named(predict_pb2.PredictRequest())
        request.model_spec.signature_name = signature_name
        dtype = tf.float32 if isinstance(values, np.ndarray) else tf.string
        request.inputs[input_name].CopyFrom(tf.make_tensor_proto(values, dtype))
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        response = self._send(stub.Predict, request)
        return {name: _array(name, tensor) for name, tensor in response.outputs.items()}

    def _get_status(self) -> Any:
        from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

        request = self._named(get_model_status_pb2.GetModelStatusRequest())
        stub = model_service_pb2_grpc.ModelServiceStub(self._channel)
        return _as_json(self._send(stub.GetModelStatus, request))

    def _get_metadata(self) -> Any:
        from tensorflow_serving.apis import get_model_metadata_pb2, prediction_service_pb2_grpc

        request = self._named(get_model_metadata_pb2.GetModelMetadataRequest())
        request.metadata_field.append("signature_def")
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        return _as_json(self._send(stub.GetModelMetadata, request))

    def _named(self, request: Any) -> Any:
        request.model_spec.name = self.model_name
        if self.version is not None:
            request.model_spec.version.value = self.version
        return request

    def _send(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self.deadline_seconds)
        except grpc.RpcError as error:
            code, details = error.code().name, one_line(error.details() or "")
            raise ServerError(
                f"The server {self.server} answered {code}: {details or 'no message.'}", code
            ) from error


def _options(attempts: int) -> list[tuple[str, str | int]]:
    policy = {
        "maxAttempts": attempts,
        "initialBackoff": f"{FIRST_WAIT_SECONDS}s",
        "maxBackoff": f"{LONGEST_WAIT_SECONDS}s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    retries = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]} if attempts > 1 else {}
    return [
        ("grpc.service_config", json.dumps(retries)),
        # gRPC sends a request again only if all of it is in this buffer.
        ("grpc.per_rpc_retry_buffer_size", LARGEST_ANSWER),
        ("grpc.max_send_message_length", LARGEST_ANSWER),
        # gRPC's own limit for an answer, 4 MB, is 6 explained images of 224x224x3.
        ("grpc.max_receive_message_length", LARGEST_ANSWER),
        # So that each repetition connects anew.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # As over REST, proxies from the environment are not followed.
        ("grpc.enable_http_proxy", 0),
    ]


def _array(name: str, tensor: Any) -> np.ndarray:
    import tensorflow as tf

    try:
        # A few bytes can declare a tensor of any size, which would then be made.
        if math.prod(dimension.size for dimension in tensor.tensor_shape.dim) > LARGEST_ANSWER:
            raise ValueError("it says that it is too large")
        return tf.make_ndarray(tensor)
    except (TypeError, ValueError) as error:
        raise SfmError(
            f"The server's output {name} cannot be read: {one_line(str(error))}"
        ) from error


def _as_json(message: Any) -> Any:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
