import json

import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.model_description import (
    ModelMetadata,
    SignatureDescription,
    TensorDescription,
    VersionStatus,
    read_metadata,
    read_status,
)

# As TensorFlow Serving's documentation shows them, shortened.
_STATUS = """{ "model_version_status": [
  {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
]}"""
_METADATA = """{
"model_spec": {"name": "counter", "signature_name": "", "version": "123"},
"metadata": {"signature_def": {"signature_def": {
  "incr_counter_by": {
    "inputs": {"delta": {
      "dtype": "DT_FLOAT",
      "tensor_shape": {"dim": [], "unknown_rank": true},
      "name": "delta:0"}},
    "outputs": {"output": {
      "dtype": "DT_INT64",
      "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}],
                       "unknown_rank": false},
      "name": "add:0"}},
    "method_name": "tensorflow/serving/predict"},
  "reset_counter": {"inputs": {}, "outputs": {}, "method_name": ""}
}}}}"""


def test_reads_the_status_of_versions():
    assert read_status(json.loads(_STATUS)) == (VersionStatus(123, "AVAILABLE", ""),)


def test_reads_the_signatures():
    assert read_metadata(json.loads(_METADATA)) == ModelMetadata(
        "counter",
        123,
        {
            "incr_counter_by": SignatureDescription(
                {"delta": TensorDescription("DT_FLOAT", None)},
                {"output": TensorDescription("DT_INT64", (-1, 3))},
            ),
            "reset_counter": SignatureDescription({}, {}),
        },
    )


@pytest.mark.parametrize(
    "message",
    [None, [], {}, {"model_version_status": 3}, {"model_version_status": [{"version": "x"}]}],
)
def test_a_malformed_status_is_told(message):
    with pytest.raises(SfmError, match="status of the model cannot be read"):
        read_status(message)


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        {"model_spec": {"name": "m", "version": "1"}, "metadata": {}},
        {**json.loads(_METADATA), "model_spec": {"name": "m", "version": None}},
        {**json.loads(_METADATA), "metadata": {"signature_def": {"signature_def": [1]}}},
    ],
)
def test_malformed_metadata_is_told(message):
    with pytest.raises(SfmError, match="metadata of the model cannot be read"):
        read_metadata(message)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
