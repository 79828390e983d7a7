import json

import numpy as np
import pytest

from sfm_tf.serving.json_outputs import write_outputs
from sfm_tf.serving.request_errors import RequestError


def test_outputs_are_written_by_row_and_by_column():
    outputs = {
        "class_id": np.int64([3, 4]),
        "logits": np.float32([[0.1, 2], [np.float32(1 / 3), -4e-30]]),
    }
    rows = json.loads(write_outputs(outputs, by_row=True))["predictions"]
    columns = json.loads(write_outputs(outputs, by_row=False))["outputs"]
    assert [row["class_id"] for row in rows] == columns["class_id"] == [3, 4]
    logits = [row["logits"] for row in rows]
    assert logits == columns["logits"]
    np.testing.assert_array_equal(np.float32(logits), outputs["logits"])


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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
