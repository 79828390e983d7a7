"""A client of TensorFlow Serving's gRPC interface; the first use of it loads TensorFlow."""

import importlib
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.model_client import (
    DEFAULT_POLICY,
    ModelClient,
    Outputs,
    RetryPolicy,
    ServerError,
    one_line,
    with_retries,
)

if TYPE_CHECKING:
    import grpc

LARGEST_MESSAGE = 256 * 2**20
"""Bytes of a request or an answer; gRPC's own limit for an answer, 4 MB, is 6 224x224x3 images."""

RETRYABLE = {"UNAVAILABLE": True, "RESOURCE_EXHAUSTED": False}
"""gRPC statuses after which the same request can succeed later, and whether they mean so where the
server does not say: a queue that is full, or a message that is too large."""

PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata by which a server says when, or by a negative number that not, to try again.

https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
"""

_OPTIONS = (
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    # The retry policy decides when to try again, and each repetition is to be a new try.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # As over REST, proxies from the environment are not followed.
    ("grpc.enable_http_proxy", 0),
)


class GrpcClient(ModelClient):
    """Asks a served model over gRPC; use as a context manager, or close it.

    with GrpcClient("127.0.0.1:8500", "sfm_defended") as client:
        answers = client.classify_files(["cat.png", "dog.jpg"])
    """

    def __init__(
        self,
        server: str,
        model_name: str,
        version: int | None = None,
        batch_size: int = 32,
        retry_policy: RetryPolicy = DEFAULT_POLICY,
        credentials: "grpc.ChannelCredentials | None" = None,
    ) -> None:
        """Opens a channel; nothing is sent.

        Args:
            server: Such as "127.0.0.1:8500".
            model_name: Name the server knows the model by.
            version: Version asked for; None for the server's latest.
            batch_size: Most images in one request.
            retry_policy: How often and how long a request is tried.
            credentials: For TLS; None sends everything in the clear.

        Raises:
            SfmError: If one of them is not usable, or a package is missing.
        """
        if "://" in server or ":" not in server:
            raise SfmError(f"Invalid server {server!r}; expected one like '127.0.0.1:8500'.")
        super().__init__(server, model_name, version, batch_size, retry_policy)
        self._grpc = _load("grpc")
        if credentials is None:
            self._channel = self._grpc.insecure_channel(server, _OPTIONS)
        else:
            self._channel = self._grpc.secure_channel(server, credentials, _OPTIONS)

    def __enter__(self) -> "GrpcClient":
        """Returns the client."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the channel."""
        self.close()

    def close(self) -> None:
        """Closes the channel; the client cannot be used any more."""
        self._channel.close()

    def _predict(
        self, signature_name: str, input_name: str, values: np.ndarray | Sequence[bytes]
    ) -> Outputs:
        tensorflow = _load("tensorflow")
        request = _load("tensorflow_serving.apis.predict_pb2").PredictRequest()
        self._name_model(request)
        request.model_spec.signature_name = signature_name
        dtype = tensorflow.float32 if isinstance(values, np.ndarray) else tensorflow.string
        request.inputs[input_name].CopyFrom(tensorflow.make_tensor_proto(values, dtype))
        stub = _load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub
        response = self._send(stub(self._channel).Predict, request)
        return {name: _array(name, tensor) for name, tensor in response.outputs.items()}

    def _get_status(self) -> Any:
        request = _load("tensorflow_serving.apis.get_model_status_pb2").GetModelStatusRequest()
        self._name_model(request)
        stub = _load("tensorflow_serving.apis.model_service_pb2_grpc").ModelServiceStub
        return _as_json(self._send(stub(self._channel).GetModelStatus, request))

    def _get_metadata(self) -> Any:
        request = _load("tensorflow_serving.apis.get_model_metadata_pb2").GetModelMetadataRequest()
        self._name_model(request)
        request.metadata_field.append("signature_def")
        stub = _load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub
        return _as_json(self._send(stub(self._channel).GetModelMetadata, request))

    def _name_model(self, request: Any) -> None:
        request.model_spec.name = self.model_name
        if self.version is not None:
            request.model_spec.version.value = self.version

    def _send(self, method: Callable[..., Any], request: Any) -> Any:
        def attempt(seconds: float) -> Any:
            try:
                return method(request, timeout=seconds)
            except self._grpc.RpcError as error:
                raise self._error(error) from error

        return with_retries(attempt, self.retry_policy)

    def _error(self, error: "grpc.Call") -> ServerError:
        code = error.code().name
        pushback = _pushback(error)
        return ServerError(
            f"The server {self.server} answered {code}: "
            f"{one_line(error.details() or '') or 'no message.'}",
            code=code,
            retryable=code in RETRYABLE
            and (RETRYABLE[code] if pushback is None else pushback >= 0),
            wait_seconds=max(pushback or 0.0, 0.0),
        )


def _pushback(error: "grpc.Call") -> float | None:
    """Returns the seconds a server asks to wait, negative for never; None if it does not say."""
    metadata = {item.key: item.value for item in error.trailing_metadata() or ()}
    try:
        return int(metadata[PUSHBACK]) / 1000 if PUSHBACK in metadata else None
    except ValueError:
        return -1.0  # As the proposal says of a value that cannot be read.


def _array(name: str, tensor: Any) -> np.ndarray:
    try:
        return _load("tensorflow").make_ndarray(tensor)
    except (TypeError, ValueError) as error:
        raise SfmError(
            f"The server's output {name} cannot be read: {one_line(str(error))}"
        ) from error


def _as_json(message: Any) -> Any:
    return _load("google.protobuf.json_format").MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _load(name: str) -> types.ModuleType:
    """Imports a module that clients over REST can do without."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SfmError(
            f"gRPC needs the package of {error.name}; install it with `pip install grpcio` and "
            "`pip install --no-deps tensorflow-serving-api==2.21.0`, or use REST."
        ) from error
