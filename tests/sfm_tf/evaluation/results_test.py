import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.results import (
    SCHEMA,
    join_results,
    read_results,
    results_rows,
    write_results,
)

COLUMNS = [
    "image_index",
    "label",
    "defence",
    "threat_model",
    "attack",
    "epsilon",
    "clean_prediction",
    "prediction",
    "linf",
    "l2",
    "iterations",
    "loss",
    "zero_gradient",
]


def _rows(**values):
    return results_rows(
        3,
        {
            "label": np.array([1, 0, 2]),
            "defence": "sfm",
            "threat_model": "white_box",
            "attack": "pgd",
            "epsilon": 8.0,
            "clean_prediction": np.array([1, 0, 0]),
            "prediction": np.array([1, 1, 0]),
            "linf": np.array([0.1, 0.2, 0.3]),
            "l2": 0.5,
            "iterations": 3,
            "loss": np.array([0.1, 1e-30, 7.0], np.float32),
            "zero_gradient": np.array([False, True, False]),
            **values,
        },
    )


def test_rows_are_one_per_image():
    rows = _rows().to_pylist()
    assert list(rows[0]) == COLUMNS
    assert [row["image_index"] for row in rows] == [0, 1, 2]
    assert [row["label"] for row in rows] == [1, 0, 2]
    assert [row["defence"] for row in rows] == ["sfm"] * 3
    assert [row["zero_gradient"] for row in rows] == [False, True, False]


def test_parquet_keeps_every_value_and_order(tmp_path):
    results = join_results([_rows(), _rows(attack="fgsm")])
    write_results(tmp_path / "results.parquet", results)
    assert read_results(tmp_path / "results.parquet").equals(results)
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 6
    assert [path.name for path in tmp_path.iterdir()] == ["results.parquet"]


def test_a_missing_column_is_a_mistake():
    with pytest.raises(KeyError, match="label"):
        results_rows(3, {"defence": "sfm"})


def test_rows_of_another_schema_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="field names"):
        write_results(tmp_path / "results.parquet", _rows().drop_columns(["loss"]))
    assert not list(tmp_path.iterdir())


def test_a_file_with_other_columns_is_refused(tmp_path):
    pq.write_table(pa.table({"accuracy": [0.5]}), tmp_path / "results.parquet")
    with pytest.raises(SfmError, match="have columns accuracy; expected image_index, label"):
        read_results(tmp_path / "results.parquet")


@pytest.mark.parametrize("content", [None, b"PAR1 nonsense"], ids=["missing", "damaged"])
def test_an_unreadable_file_is_reported(tmp_path, content):
    path = tmp_path / "results.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SfmError, match="Cannot read results .*run the evaluation again"):
        read_results(path)


def test_no_value_may_be_missing():
    assert not any(field.nullable for field in SCHEMA)
