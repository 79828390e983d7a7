import concurrent.futures
import contextlib
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from sfm_tf.errors import SfmError
from sfm_tf.serving.client import grpc_client
from sfm_tf.serving.client.grpc_client import GrpcClient
from sfm_tf.serving.client.model_client import ServerError

_IMAGES = np.array([0.0, 0.1, 0.5, 1.0], np.float32).reshape(2, 1, 2, 1)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(grpc_client, "FIRST_WAIT_SECONDS", 0.01)


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Gives each answer in turn, the last one for ever: outputs, or what to abort with."""

    def __init__(self, answers):
        self.answers, self.requests = answers, []

    def Predict(self, request, context):  # noqa: N802  The protocol's name.
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, float):
            time.sleep(answer)
        elif isinstance(answer, tuple):
            context.abort(*answer)
        elif isinstance(answer, predict_pb2.PredictResponse):
            return answer
        return predict_pb2.PredictResponse(
            outputs={name: tf.make_tensor_proto(value) for name, value in answer.items()}
        )

    def GetModelMetadata(self, request, context):  # noqa: N802
        self.requests.append(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        tensor = signatures.signature_def["serving_default"].inputs["images"]
        tensor.dtype = types_pb2.DT_FLOAT
        for size in (-1, 8, 8, 1):
            tensor.tensor_shape.dim.add().size = size
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = "m"
        response.model_spec.version.value = 7
        response.metadata["signature_def"].Pack(signatures)
        return response


class _Status(model_service_pb2_grpc.ModelServiceServicer):
    def GetModelStatus(self, request, context):  # noqa: N802
        response = get_model_status_pb2.GetModelStatusResponse()
        entry = response.model_version_status.add()
        entry.version = 7
        entry.state = get_model_status_pb2.ModelVersionStatus.LOADING
        entry.status.error_message = request.model_spec.name
        return response


@contextlib.contextmanager
def _server(*answers):
    pool = concurrent.futures.ThreadPoolExecutor(4)
    server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
    predictions = _Predictions(answers)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(predictions, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Status(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", predictions.requests
    server.stop(0).wait()
    pool.shutdown()


def _outputs(count=2, **changes):
    outputs = {
        "class_id": np.arange(count) % 2,
        "probabilities": np.tile(np.float32([0.25, 0.75]), (count, 1)),
        "logits": np.tile(np.float32([-1.0, 0.1]), (count, 1)),
    }
    return {**outputs, **changes}


def test_images_are_sent_as_a_float_tensor():
    with (
        _server(_outputs()) as (address, requests),
        GrpcClient(address, "sfm_defended", version=7) as client,
    ):
        answers = client.classify(_IMAGES)
    assert [answer.class_id for answer in answers] == [0, 1]
    assert answers[0].logits == (-1.0, float(np.float32(0.1)))
    (request,) = requests
    assert request.model_spec.name == "sfm_defended"
    assert request.model_spec.version.value == 7
    assert request.model_spec.signature_name == "serving_default"
    assert list(request.inputs) == ["images"]
    assert request.inputs["images"].dtype == types_pb2.DT_FLOAT
    np.testing.assert_array_equal(tf.make_ndarray(request.inputs["images"]), _IMAGES)


def test_files_are_sent_as_their_bytes():
    contents = [b"\x89PNG\x00\xff\x00", b"plain"]
    outputs = _outputs(status=np.array([1, 0]), class_id=np.array([-1, 1]))
    with _server(outputs) as (address, requests), GrpcClient(address, "m") as client:
        answers = client.classify_bytes(contents)
    assert [answer.status for answer in answers] == [1, 0]
    (request,) = requests
    assert not request.model_spec.HasField("version")
    assert request.model_spec.signature_name == "predict_bytes"
    assert request.inputs["image_bytes"].dtype == types_pb2.DT_STRING
    assert list(request.inputs["image_bytes"].string_val) == contents


def test_explanations_hold_images_and_files():
    floats = np.float32([[[[0.5], [1.0]]]])
    outputs = {"class_id": np.array([1])}
    outputs |= dict.fromkeys(("mask", "masked_image", "defended_image"), floats)
    outputs |= dict.fromkeys(
        ("mask_png_bytes", "masked_png_bytes", "defended_png_bytes"), [b"\x89PNG\x00"]
    )
    with _server(outputs) as (address, _), GrpcClient(address, "m") as client:
        (explanation,) = client.explain(_IMAGES[:1])
    np.testing.assert_array_equal(explanation.mask, floats[0])
    assert explanation.mask_png == b"\x89PNG\x00"


def test_describes_the_model():
    with _server(_outputs()) as (address, requests), GrpcClient(address, "m") as client:
        (status,) = client.status()
        metadata = client.metadata()
    assert (status.version, status.state, status.error_message) == (7, "LOADING", "m")
    images = metadata["serving_default"]["inputs"]["images"]
    assert images["dtype"] == "DT_FLOAT"
    assert [size["size"] for size in images["tensor_shape"]["dim"]] == ["-1", "8", "8", "1"]
    assert list(requests[0].metadata_field) == ["signature_def"]


def test_messages_may_be_larger_than_grpc_allows_by_itself():
    # Five megabytes each way, where gRPC's own limit is four.
    images = np.zeros((2, 800, 800, 1), np.float32)
    logits = probabilities = np.full((2, 640_000), 0.5, np.float32)
    outputs = _outputs(logits=logits, probabilities=probabilities)
    with _server(outputs) as (address, requests), GrpcClient(address, "m") as client:
        assert len(client.classify(images)[0].logits) == 640_000
    assert requests[0].ByteSize() > 5_000_000


@pytest.mark.parametrize("side", [1, 400], ids=["small", "larger than gRPC's own buffer"])
def test_a_server_that_is_busy_is_asked_again(side):
    busy = (grpc.StatusCode.UNAVAILABLE, "queue full")
    images = np.zeros((2, side, side, 1), np.float32)
    with _server(busy, busy, _outputs()) as (address, requests), GrpcClient(address, "m") as client:
        assert len(client.classify(images)) == 2
    assert len(requests) == 3


@pytest.mark.parametrize("attempts", [1, 3])
def test_gives_up_on_a_server_that_stays_busy(attempts):
    with (
        _server((grpc.StatusCode.UNAVAILABLE, "queue full")) as (address, requests),
        GrpcClient(address, "m", attempts=attempts) as client,
        pytest.raises(ServerError, match="answered UNAVAILABLE: queue full$"),
    ):
        client.classify(_IMAGES)
    assert len(requests) == attempts


@pytest.mark.parametrize(
    "code",
    ["INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"],
)
def test_no_other_status_is_asked_again(code):
    answer = (grpc.StatusCode[code], "Servable not found for request:\nLatest(m)")
    with (
        _server(answer) as (address, requests),
        GrpcClient(address, "m") as client,
        pytest.raises(
            ServerError, match=f"{address} answered {code}: Servable not found for request: Latest"
        ) as caught,
    ):
        client.classify(_IMAGES)
    assert len(requests) == 1
    assert caught.value.code == code


def test_the_deadline_ends_a_request():
    start = time.monotonic()
    with (
        _server(1.0, _outputs()) as (address, requests),
        GrpcClient(address, "m", deadline_seconds=0.3) as client,
    ):
        with pytest.raises(ServerError, match="DEADLINE_EXCEEDED"):
            client.classify(_IMAGES)
        assert time.monotonic() - start < 0.9
    assert len(requests) == 1


def test_a_server_that_is_not_there_is_told():
    with _server(_outputs()) as (address, _):
        pass
    with (
        GrpcClient(address, "m") as client,
        pytest.raises(ServerError, match="UNAVAILABLE: .*refused"),
    ):
        client.classify(_IMAGES)


def test_a_server_that_starts_late_is_found(monkeypatch):
    monkeypatch.setattr(grpc_client, "FIRST_WAIT_SECONDS", 0.2)
    with _server(_outputs()) as (address, _):
        pass
    with (
        GrpcClient(address, "m") as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        answers = pool.submit(client.classify, _IMAGES)
        time.sleep(0.3)
        server = grpc.server(workers := concurrent.futures.ThreadPoolExecutor(1))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _Predictions([_outputs()]), server
        )
        server.add_insecure_port(address)
        server.start()
        assert len(answers.result(timeout=10)) == 2
        server.stop(0).wait()
        workers.shutdown()


def test_a_malformed_answer_is_named():
    with (
        _server(_outputs(class_id=np.array(1))) as (address, _),
        GrpcClient(address, "m") as client,
        pytest.raises(SfmError, match=r"answer has class_id of shape \(\) for 2 images"),
    ):
        client.classify(_IMAGES)


def test_a_tensor_that_says_it_is_huge_is_not_made():
    tensor = tf.make_tensor_proto(np.float32([0.5]))
    tensor.tensor_shape.dim[0].size = 2**40
    answer = predict_pb2.PredictResponse(outputs={"logits": tensor})
    with (
        _server(answer) as (address, _),
        GrpcClient(address, "m") as client,
        pytest.raises(SfmError, match="output logits cannot be read: it says that it is too large"),
    ):
        client.classify(_IMAGES)


@pytest.mark.parametrize("server", ["http://127.0.0.1:8500", "localhost", ""])
def test_refuses_other_addresses(server):
    with pytest.raises(SfmError, match="expected one like '127.0.0.1:8500'"):
        GrpcClient(server, "m")
