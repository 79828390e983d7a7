import asyncio
import base64
import gzip
import json
import zlib

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.serving.content_coding import open_decoder
from sfm_tf.serving.prediction_service import Code, RequestError
from sfm_tf.serving.rest_api import RestApi, read_body, read_inputs, read_request, write_outputs
from tests.sfm_tf.serving.toy_model import IMAGES, api_of_version_3, logits


def test_outputs_are_written_by_row_and_by_column():
    outputs = {
        "class_id": np.int64([3, 4]),
        "logits": np.float32([[0.1, 2], [np.float32(1 / 3), -4e-30]]),
    }
    rows = json.loads(write_outputs(outputs, by_row=True))["predictions"]
    columns = json.loads(write_outputs(outputs, by_row=False))["outputs"]
    assert [row["class_id"] for row in rows] == columns["class_id"] == [3, 4]
    by_row = [row["logits"] for row in rows]
    assert by_row == columns["logits"]
    np.testing.assert_array_equal(np.float32(by_row), outputs["logits"])


def test_a_single_output_is_written_without_its_name():
    outputs = {"y": np.float32([[1], [2]])}
    assert json.loads(write_outputs(outputs, True)) == {"predictions": [[1.0], [2.0]]}
    assert json.loads(write_outputs(outputs, False)) == {"outputs": [[1.0], [2.0]]}


def test_binary_outputs_are_base64_where_the_name_or_the_bytes_say_so():
    strings = np.array([b"cat", b"\x89PNG"], dtype=object)
    named = json.loads(write_outputs({"a_bytes": strings}, True))["predictions"]
    assert named == [{"b64": "Y2F0"}, {"b64": "iVBORw=="}]
    unnamed = json.loads(write_outputs({"a": strings}, True))["predictions"]
    assert unnamed == ["cat", {"b64": "iVBORw=="}]


def test_rows_need_one_batch_size():
    for other in (np.float32([1, 2, 3]), np.float32(1)):
        with pytest.raises(RequestError, match="inconsistent batch sizes"):
            write_outputs({"a": np.float32([1, 2]), "b": other}, True)


FLOATS = {"x": tf.TensorSpec(None, tf.float32)}
STRINGS = {"x_bytes": tf.TensorSpec(None, tf.string)}
TWO = {"a": tf.TensorSpec(None, tf.float32), "b": tf.TensorSpec(None, tf.int64)}


def read(text, specs, most_lists=1000):
    body = text if isinstance(text, bytes) else text.encode()
    return read_inputs(read_request(body, most_lists), specs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"instances": [1, 2.5]}', [1.0, 2.5]),
        ('{"instances": [[[1], [0.1]], [[-3], [4e-2]]]}', [[[1], [0.1]], [[-3], [0.04]]]),
        ('{"instances": [{"x": [1]}, {"x": [2]}]}', [[1], [2]]),
        ('{"inputs": [[1, 2]]}', [[1, 2]]),
        ('{"inputs": {"x": [[1, 2]]}}', [[1, 2]]),
        ('{"inputs": 7}', 7),
        ('{"inputs": []}', []),
        ('{"instances": [[], []]}', [[], []]),
        (' {"signature_name": "s", "other": null, "instances": [0]} ', [0]),
    ],
)
def test_both_formats_become_the_tensor(text, expected):
    (array,) = read(text, FLOATS).values()
    assert array.dtype == np.float32
    assert array.shape == np.shape(expected)
    np.testing.assert_array_equal(array, np.float32(expected))


def test_several_inputs_are_named_by_row_or_by_column():
    rows = read('{"instances": [{"a": 1, "b": 2}, {"b": 4, "a": 3}]}', TWO)
    columns = read('{"inputs": {"a": [1, 3], "b": [2, 4], "ignored": 1}}', TWO)
    for arrays in (rows, columns):
        assert arrays["a"].tolist() == [1.0, 3.0]
        assert arrays["b"].tolist() == [2, 4]
        assert arrays["b"].dtype == np.int64


def test_bytes_come_as_base64_and_text_as_text():
    binary = bytes(range(256))
    encoded = json.dumps({"b64": base64.b64encode(binary).decode()})
    for text in (
        f'{{"instances": [{encoded}, "Ä"]}}',
        f'{{"inputs": [{encoded}, "Ä"]}}',
        f'{{"instances": [{{"x_bytes": {encoded}}}, {{"x_bytes": "Ä"}}]}}',
    ):
        (array,) = read(text, STRINGS).values()
        assert array.tolist() == [binary, "Ä".encode()]
    # Padding is optional, as in absl's Base64Unescape; trailing zero bytes are kept.
    (array,) = read('{"inputs": [{"b64": "AAA"}]}', STRINGS).values()
    assert array.tolist() == [b"\0\0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON Parse error: Expecting value"),
        ('{"instances": [1,', "JSON Parse error: .*17"),
        (b'{"instances": ["\xff"]}', "JSON Parse error: .*utf-8"),
        ("[" * 400 + "]" * 400, "is not an object"),
        ('{"instances": [' + "9" * 5000 + "]}", "JSON Parse error: .*digits"),
        ('{"instances": [NaN]}', "NaN is no JSON number"),
        ('{"instances": [-Infinity]}', "-Infinity is no JSON number"),
        ('{"instances": [1' + "0" * 400 + "]}", "a value too large for float32"),
        ('{"signature_name": 1, "instances": [1]}', "'signature_name' key must be a string"),
        ('{"examples": [1]}', "either an 'instances' or an 'inputs' key"),
        ('{"inputs": [1], "instances": [1]}', "either an 'instances' or an 'inputs' key"),
        ('{"instances": 1}', "a list with at least one value"),
        ('{"instances": []}', "a list with at least one value"),
        ('{"instances": ["a"]}', "not of expected type: float32"),
        ('{"instances": [1, true]}', "not of expected type: float32"),
        ('{"instances": [null]}', "not of expected type: float32"),
        ('{"instances": [{"b64": "AA=="}]}', "not of expected type: float32"),
        ('{"instances": [1, {"x": 2}]}', "not of expected type: float32"),
        ('{"instances": [[1, [2]]]}', "not of expected type: float32"),
        ('{"instances": [[1], [1, 2]]}', "lists of different lengths at level 1"),
        ('{"instances": [[[1], [1, 2]]]}', "lists of different lengths at level 2"),
        ('{"inputs": [[[1], 2]]}', "lists of different lengths at level 2"),
        ('{"instances": [{"x": 1}, 2]}', "Expected values named x in each object"),
        ('{"instances": [{"y": 1}]}', "Expected values named x in each object"),
        ('{"inputs": {"y": 1}}', "Expected values named x in each object"),
    ],
)
def test_what_is_no_such_tensor_is_refused(text, message):
    with pytest.raises(RequestError, match=message) as caught:
        read(text, FLOATS)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"b64": "?"}', "neither text nor base64"),
        ('{"b64": 1}', "neither text nor base64"),
        (r'"\ud800"', "neither text nor base64"),
        ("1", "not of expected type: string"),
    ],
)
def test_what_is_no_string_is_refused(value, message):
    with pytest.raises(RequestError, match=message):
        read(f'{{"instances": [{value}]}}', STRINGS)


@pytest.mark.parametrize("value", ["1.5", "128", "-129", "1e2"])
def test_integers_are_whole_and_in_range(value):
    specs = {"x": tf.TensorSpec(None, tf.int8)}
    assert read('{"instances": [127, -128]}', specs)["x"].tolist() == [127, -128]
    with pytest.raises(RequestError, match=r"expected type: int8|too large for int8"):
        read(f'{{"instances": [{value}]}}', specs)


@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_several_inputs_need_names(key):
    with pytest.raises(RequestError, match="Expected objects that name the inputs a, b"):
        read(f'{{"{key}": [1]}}', TWO)


def test_other_types_are_not_converted():
    with pytest.raises(RequestError, match="type complex64, which JSON does not have") as caught:
        read('{"instances": [1]}', {"x": tf.TensorSpec(None, tf.complex64)})
    assert caught.value.code is Code.UNIMPLEMENTED


def test_a_document_of_brackets_is_refused_before_it_is_parsed():
    with pytest.raises(RequestError, match="more than 1000 lists and objects") as caught:
        read('{"instances": [' + "[]," * 1000 + "[]]}", FLOATS)
    assert caught.value.code is Code.TOO_LARGE
    with pytest.raises(RequestError, match="nested too deeply"):
        read("[" * 200_000, FLOATS, most_lists=10**6)


PREDICT = "/v1/models/toy:predict"


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    return api_of_version_3(RestApi, tmp_path_factory.mktemp("toy"))


async def stream(*chunks):
    for chunk in chunks:
        yield chunk


def ask(api, method, path, body=b"", length=None, coding=""):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    chunks = stream(body[:9], body[9:])
    status, answer = asyncio.run(api.answer(method, path, length, chunks, coding))
    return status, json.loads(answer or "null")


@pytest.mark.parametrize("path", [PREDICT, "/v1/models/toy/versions/3:predict"])
def test_rows_are_answered_by_rows(api, path):
    status, answer = ask(api, "POST", path, {"instances": IMAGES.tolist()})
    assert status == 200
    rows = [row["logits"] for row in answer["predictions"]]
    np.testing.assert_allclose(rows, logits(3), rtol=1e-6)
    assert [row["class_id"] for row in answer["predictions"]] == [1, 1]


def test_columns_are_answered_by_columns(api):
    body = {"signature_name": "serving_default", "inputs": {"images": IMAGES.tolist()}}
    status, answer = ask(api, "POST", PREDICT, body)
    assert status == 200
    np.testing.assert_allclose(answer["outputs"]["logits"], logits(3), rtol=1e-6)
    assert answer["outputs"]["class_id"] == [1, 1]


def test_bytes_go_in_and_come_out_as_base64(api):
    encoded = [{"b64": base64.b64encode(data).decode()} for data in (b"\x89PNG\0", b"")]
    body = {"signature_name": "predict_bytes", "instances": encoded}
    status, answer = ask(api, "POST", PREDICT, body)
    assert status == 200
    assert answer["predictions"] == [
        {"copy_bytes": encoded[0], "status": 5},
        {"copy_bytes": encoded[1], "status": 0},
    ]


@pytest.mark.parametrize("path", ["/v1/models/toy", "/v1/models/toy/versions/3"])
def test_status_is_that_of_tensorflow_serving(api, path):
    # The document of http_rest_api_handler_test.cc, with another version.
    assert ask(api, "GET", path) == (
        200,
        {
            "model_version_status": [
                {
                    "version": "3",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        },
    )


@pytest.mark.parametrize("path", ["/v1/models/toy/metadata", "/v1/models/toy/versions/3/metadata"])
def test_metadata_has_the_signatures(api, path):
    status, answer = ask(api, "GET", path)
    assert status == 200
    assert answer["model_spec"] == {"name": "toy", "signature_name": "", "version": "3"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    images = signatures["serving_default"]["inputs"]["images"]
    assert images["dtype"] == "DT_FLOAT"
    sizes = [dimension["size"] for dimension in images["tensor_shape"]["dim"]]
    assert sizes == ["-1", "4", "4", "1"]
    assert signatures["serving_default"]["method_name"] == "tensorflow/serving/predict"
    assert signatures["predict_bytes"]["inputs"]["image_bytes"]["dtype"] == "DT_STRING"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        # Those of http_rest_api_handler_test.cc.
        ("GET", "/v1/foo", 400, "Malformed request: GET /v1/foo"),
        ("POST", "/v1/foo", 400, "Malformed request"),
        ("GET", "/v1/models", 400, "Malformed request"),
        ("POST", "/v1/models", 400, "Malformed request"),
        ("GET", PREDICT, 400, "Malformed request"),
        ("PUT", PREDICT, 400, "Malformed request"),
        ("POST", "/v1/models/toy/version/50:predict", 400, "Malformed request"),
        ("POST", "/v1/models/toy/versions/HELLO:predict", 400, "Malformed request"),
        ("POST", f"/v1/models/toy/versions/{2**64 - 1}:predict", 400, "Failed to convert version"),
        ("POST", f"/v1/models/toy/versions/{'9' * 5000}:predict", 400, "Failed to convert"),
        ("POST", "/v1/models/foo:predict", 404, "Servable not found for request: Latest(foo)"),
        ("POST", "/v1/models/toy/versions/99:predict", 404, "Specific(toy, 99)"),
        ("GET", "/v1/models/foo", 404, "Could not find any versions of model foo"),
        ("GET", "/v1/models/toy/versions/9", 404, "Could not find version 9 of model toy"),
        ("GET", "/v1/models/foo/metadata", 404, "Servable not found"),
        ("GET", "/v1/models/toy/labels/stable", 400, "Malformed request"),
        ("POST", "/v1/models/toy:classify", 400, "Malformed request"),
    ],
)
def test_routes_that_do_not_exist(api, method, path, status, message):
    found, answer = ask(api, method, path, {"instances": [1]})
    assert found == status
    assert message in answer["error"]


@pytest.mark.parametrize("path", ["/", "/index", "/v2/models/toy", "/../v1/models/toy"])
def test_other_paths_are_not_there(api, path):
    assert ask(api, "GET", path) == (404, None)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "JSON Parse error"),
        ({"signature_name": "nope", "instances": [1]}, 400, 'signature key "nope" not found'),
        ({"instances": IMAGES[:, :3].tolist()}, 400, "has shape [2,3,4,1]; expected [?,4,4,1]"),
        ({"instances": IMAGES[0].tolist()}, 400, "has shape [4,4,1]; expected"),
        ({"instances": ["a"]}, 400, "is not of expected type: float"),
        (b'{"instances": [[[[0.5], [1e39]]]]}', 400, "has shape [1,1,2,1]"),
        (json.dumps({"inputs": IMAGES.tolist()}).replace("1.0", "1e39").encode(), 400, "infinite"),
        ({"instances": (IMAGES * 255).tolist()}, 400, "values from 0 to 255; expected values in"),
        ({"instances": IMAGES[:1].repeat(5, 0).tolist()}, 400, "Task size 5 is larger than"),
        (b'{"instances": [NaN]}', 400, "NaN is no JSON number"),
        (b"x" * 20_001, 413, "larger than the limit of 20000 bytes"),
    ],
)
def test_bodies_that_are_refused(api, body, status, message):
    found, answer = ask(api, "POST", PREDICT, body)
    assert found == status
    assert message in answer["error"]


def test_a_defect_is_told_without_its_details_and_the_server_goes_on(api, monkeypatch, caplog):
    def fail(*arguments):
        raise KeyError("secret")

    with monkeypatch.context() as patch:
        patch.setattr("sfm_tf.serving.rest_api.read_request", fail)
        status, answer = ask(api, "POST", PREDICT, {"instances": IMAGES.tolist()})
    assert status == 500
    assert "secret" not in answer["error"]
    assert "secret" in caplog.text
    assert ask(api, "POST", PREDICT, {"instances": IMAGES.tolist()})[0] == 200


def test_a_body_is_read_up_to_the_limit():
    assert asyncio.run(read_body(None, stream(b"ab", b"", b"cd"), 4, open_decoder(""))) == b"abcd"
    for length, chunks in ((None, (b"ab", b"cde")), (5, (b"a",))):
        with pytest.raises(RequestError, match="larger than the limit of 4") as caught:
            asyncio.run(read_body(length, stream(*chunks), 4, open_decoder("")))
        assert caught.value.code is Code.TOO_LARGE


def test_a_body_without_end_is_not_read_for_ever():
    taken = []

    async def endless():
        while True:
            taken.append(1)
            yield b"0123456789"

    with pytest.raises(RequestError, match="larger"):
        asyncio.run(read_body(None, endless(), 10, open_decoder("")))
    assert 1 < len(taken) < 10


BODY = json.dumps({"instances": IMAGES.tolist()}).encode()


@pytest.mark.parametrize(
    ("coding", "body", "status", "message"),
    [
        ("gzip", gzip.compress(BODY), 200, ""),
        ("deflate", zlib.compress(BODY), 200, ""),
        ("identity", BODY, 200, ""),
        ("br", BODY, 415, "Unknown Content-Encoding 'br'; expected gzip, deflate or identity"),
        ("gzip", BODY, 400, "The body is no gzip data: "),
        ("gzip", gzip.compress(b" " * 1_000_000), 413, "larger than the limit of 20000 bytes"),
        ("gzip", gzip.compress(b"x"), 400, "JSON Parse error"),
    ],
    ids=["gzip", "deflate", "identity", "other", "unpacked", "bomb", "no JSON"],
)
def test_packed_bodies_are_unpacked_within_the_limit(api, coding, body, status, message):
    found, answer = ask(api, "POST", PREDICT, body, coding=coding)
    assert found == status
    if status == 200:
        assert [row["class_id"] for row in answer["predictions"]] == [1, 1]
    else:
        assert message in answer["error"]
