import asyncio
import contextlib
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from sfm_tf.serving.grpc_api import SERVICES, GrpcApi
from sfm_tf.serving.ray_server import resolve, start_grpc_server
from tests.sfm_tf.serving.toy_model import IMAGES, LIMITS, api_of_version_3, logits


@contextlib.contextmanager
def served(api, services):
    """Runs the services on a port of their own, as a server would."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start():
        return await start_grpc_server(
            resolve("127.0.0.1", 0), services, api.answer, LIMITS.body_bytes
        )

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def channel(tmp_path_factory):
    api = api_of_version_3(GrpcApi, tmp_path_factory.mktemp("toy"))
    with served(api, SERVICES) as opened:
        yield opened


def predict_request(images=IMAGES, name="toy", version=None, signature="", key="images"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    request.inputs[key].CopyFrom(tf.make_tensor_proto(images))
    return request


def predict(channel, request):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)


def refusal(channel, request):
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, request)
    return caught.value.code().name, caught.value.details()


@pytest.mark.parametrize("version", [None, 3])
def test_the_unmodified_stub_predicts(channel, version):
    response = predict(channel, predict_request(version=version))
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("toy", 3, "serving_default")
    outputs = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
    assert set(outputs) == {"logits", "class_id"}
    np.testing.assert_allclose(outputs["logits"], logits(3), rtol=1e-6)
    np.testing.assert_array_equal(outputs["class_id"], [1, 1])


def test_strings_and_named_signatures(channel):
    data = np.array([b"\x89PNG\0\0", b""], dtype=object)
    request = predict_request(data, signature="predict_bytes", key="image_bytes")
    response = predict(channel, request)
    assert tf.make_ndarray(response.outputs["status"]).tolist() == [6, 0]
    assert tf.make_ndarray(response.outputs["copy_bytes"]).tolist() == [b"\x89PNG\0\0", b""]


def test_only_the_outputs_asked_for_are_sent(channel):
    request = predict_request()
    request.output_filter.append("logits")
    assert list(predict(channel, request).outputs) == ["logits"]
    for wanted in (["logits", "logits"], ["mean"]):
        request.output_filter[:] = wanted
        code, details = refusal(channel, request)
        assert code == "INVALID_ARGUMENT"
        assert f"output_filter {', '.join(wanted)}; expected some of class_id, logits" in details


@pytest.mark.parametrize(
    ("changes", "code", "details"),
    [
        ({"name": "other"}, "NOT_FOUND", "Servable not found for request: Latest(other)"),
        ({"version": 9}, "NOT_FOUND", "Servable not found for request: Specific(toy, 9)"),
        ({"signature": "nope"}, "FAILED_PRECONDITION", 'Serving signature key "nope" not found.'),
        ({"key": "image"}, "INVALID_ARGUMENT", "Sent the inputs image; expected images."),
        ({"images": IMAGES.astype(float)}, "INVALID_ARGUMENT", "type float64; expected float32"),
        ({"images": IMAGES[0]}, "INVALID_ARGUMENT", "shape [4,4,1]; expected [?,4,4,1]"),
        ({"images": IMAGES[:, :2]}, "INVALID_ARGUMENT", "shape [2,2,4,1]"),
        ({"images": IMAGES * np.nan}, "INVALID_ARGUMENT", "NaN or infinite"),
        ({"images": IMAGES * 255}, "INVALID_ARGUMENT", "values from 0 to 255"),
        ({"images": IMAGES[:1].repeat(5, 0)}, "INVALID_ARGUMENT", "Task size 5 is larger"),
        ({"images": IMAGES[:1].repeat(500, 0)}, "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_requests_that_are_refused(channel, changes, code, details):
    found, message = refusal(channel, predict_request(**changes))
    assert found == code
    assert details in message


def test_a_tensor_that_only_says_it_is_large_takes_no_room(channel):
    request = predict_request(IMAGES[:1])
    for sizes in ([10**9, 4, 4, 1], [2**62, 2**62, 4, 1], [-1, 4, 4, 1]):
        for dimension, size in zip(request.inputs["images"].tensor_shape.dim, sizes, strict=True):
            dimension.size = size
        assert refusal(channel, request)[0] == "INVALID_ARGUMENT"


def test_a_tensor_with_too_few_or_too_many_bytes(channel):
    for data in (b"", b"\0" * 63, b"\0" * 128):
        request = predict_request(IMAGES[:1])
        request.inputs["images"].tensor_content = data
        if data:
            assert "does not hold as many values" in refusal(channel, request)[1]
    request.inputs["images"].dtype = 999
    assert refusal(channel, request)[0] == "INVALID_ARGUMENT"


def test_what_is_no_message_is_refused(channel):
    method = "/tensorflow.serving.PredictionService/Predict"
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(b"\xff\xff\xff", timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
        channel.unary_unary(method)(b"", timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/tensorflow.serving.PredictionService/Classify")(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_metadata_has_the_signatures(channel):
    ask = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "toy"
    response = ask(request, timeout=20)
    assert response.model_spec.version.value == 3
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    images = signatures.signature_def["serving_default"].inputs["images"]
    assert [dimension.size for dimension in images.tensor_shape.dim] == [-1, 4, 4, 1]
    for fields in ([], ["size"]):
        request.metadata_field[:] = fields
        with pytest.raises(grpc.RpcError, match="Expected metadata_field to be signature_def"):
            ask(request, timeout=20)


def test_status_has_the_versions(channel):
    ask = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "toy"
    (status,) = ask(request, timeout=20).model_version_status
    assert (status.version, status.state, status.status.error_code) == (3, status.AVAILABLE, 0)
    request.model_spec.version_label = "stable"
    with pytest.raises(grpc.RpcError, match="Unrecognized servable version label"):
        ask(request, timeout=20)
    request.model_spec.name, request.model_spec.version.value = "toy", 9
    with pytest.raises(grpc.RpcError, match="Could not find version 9 of model toy"):
        ask(request, timeout=20)
