import base64
import json

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.serving.request_errors import Code, RequestError
from sfm_tf.serving.tensor_json import read_inputs, read_request

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
        ("", "JSON Parse error: The document is empty"),
        ("instances = [1, 2]", "JSON Parse error: .* at offset: 0"),
        ('{"instances": [1,', "JSON Parse error: .* at offset: 17"),
        (b'{"instances": ["\xff"]}', "JSON Parse error: .*utf-8"),
        ("[" * 400 + "]" * 400, "Is not object"),
        ('{"instances": [' + "9" * 5000 + "]}", "JSON Parse error: .*digits"),
        ('{"instances": [NaN]}', "NaN is no JSON number"),
        ('{"instances": [-Infinity]}', "-Infinity is no JSON number"),
        ('{"instances": [1e999]}', "Cannot convert JSON value: Infinity to float without loss"),
        ('{"instances": [0.5, 1e39]}', "Cannot convert JSON value: 1e.39 to float without loss"),
        ('{"instances": [1' + "0" * 400 + "]}", "to float without loss of precision"),
        ('{"signature_name": 1, "instances": [1]}', "'signature_name' key must be a string"),
        ('{"examples": [1]}', "Missing 'inputs' or 'instances' key"),
        ('{"inputs": [1], "instances": [1]}', "expecting only one of"),
        ('{"instances": 1}', "Excepting 'instances' to be an list/array"),
        ('{"instances": []}', "No values in 'instances' array"),
        ('{"instances": ["a"]}', 'JSON Value: "a" Type: String is not of expected type: float'),
        ('{"instances": [1, true]}', "process element: 1 .*Type: Bool is not of expected type"),
        ('{"instances": [null]}', "Type: Null is not of expected type: float"),
        ('{"instances": [{"b64": "AA=="}]}', "Type: Object is not of expected type: float"),
        ('{"instances": [[1], [1, 2]]}', r"element: 1 .*Expecting shape \[1\] but got: \[2\]"),
        ('{"instances": [[[1], [1, 2]]]}', "list at unexpected size: 2 at level: 1 expected size"),
        ('{"instances": [[1, [2]]]}', "Encountered list at unexpected level"),
        ('{"inputs": [[[1], 2]]}', "JSON Value: 2 found at incorrect level"),
        ('{"instances": [{"x": 1}, 2]}', "Expecting object but got list at item 1"),
        ('{"instances": [1, {"x": 2}]}', "Expecting value/list but got object at item 1"),
        ('{"instances": [{"y": 1}]}', "element: 0 .* keys must be equal to: x"),
        ('{"inputs": {"y": 1}}', "Missing named input: x in 'inputs' object"),
    ],
)
def test_what_is_no_such_tensor_is_refused_in_the_words_of_tensorflow_serving(text, message):
    with pytest.raises(RequestError, match=message) as caught:
        read(text, FLOATS)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"b64": "?"}', "Unable to base64 decode"),
        ('{"b64": 1}', "keys must be equal to"),
        ("1", "Type: Number is not of expected type: string"),
        (r'"\ud800"', "half a surrogate pair"),
    ],
)
def test_what_is_no_string_is_refused(value, message):
    with pytest.raises(RequestError, match=message):
        read(f'{{"instances": [{value}]}}', STRINGS)


@pytest.mark.parametrize("value", ["1.5", "128", "-129", "1e2"])
def test_integers_are_whole_and_in_range(value):
    specs = {"x": tf.TensorSpec(None, tf.int8)}
    assert read('{"instances": [127, -128]}', specs)["x"].tolist() == [127, -128]
    with pytest.raises(RequestError, match="is not of expected type: int8"):
        read(f'{{"instances": [{value}]}}', specs)


def test_several_inputs_need_names():
    with pytest.raises(RequestError, match="instances is a plain list, but expecting"):
        read('{"instances": [1]}', TWO)
    with pytest.raises(RequestError, match="inputs is a plain value/list, but expecting"):
        read('{"inputs": [1]}', TWO)


def test_other_types_are_not_converted():
    with pytest.raises(RequestError, match="to type: complex64") as caught:
        read('{"instances": [1]}', {"x": tf.TensorSpec(None, tf.complex64)})
    assert caught.value.code is Code.UNIMPLEMENTED


def test_a_document_of_brackets_is_refused_before_it_is_parsed():
    with pytest.raises(RequestError, match="more than 1000 lists and objects") as caught:
        read('{"instances": [' + "[]," * 1000 + "[]]}", FLOATS)
    assert caught.value.code is Code.TOO_LARGE
    with pytest.raises(RequestError, match="nested too deeply"):
        read("[" * 200_000, FLOATS, most_lists=10**6)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
