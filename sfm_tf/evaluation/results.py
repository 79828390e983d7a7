"""The per-sample results: one row per image, defence, threat model, attack and radius."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sfm_tf.artifacts.atomic_files import write_bytes
from sfm_tf.errors import SfmError

OWN_MODEL = "model"
"""Name of a classifier that the user brought."""

DEFENDED = "sfm"
"""Name of the model under test: classifier behind masker and pre-processing."""

UNDEFENDED = "undefended"
"""Name of the bare classifier it is compared with."""

CLEAN = "clean"
"""Name in column `attack` of the rows of unperturbed images."""

NO_THREAT = "none"
"""Name in column `threat_model` of those rows."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A defence that is scored under a threat model."""

    defence: str
    threat_model: str

    def __str__(self) -> str:
        """Returns both words."""
        return f"{self.defence} {self.threat_model}"


ResultsTable: TypeAlias = pa.Table

SCHEMA = pa.schema(
    [
        pa.field("image_index", pa.int32(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("defence", pa.string(), nullable=False),
        pa.field("threat_model", pa.string(), nullable=False),
        pa.field("attack", pa.string(), nullable=False),
        pa.field("epsilon", pa.float64(), nullable=False),
        pa.field("clean_prediction", pa.int64(), nullable=False),
        pa.field("prediction", pa.int64(), nullable=False),
        pa.field("linf", pa.float64(), nullable=False),
        pa.field("l2", pa.float64(), nullable=False),
        pa.field("iterations", pa.int32(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("zero_gradient", pa.bool_(), nullable=False),
    ]
)
"""Columns of a results table.

`epsilon` is in 1/255. It is infinite in the rows of an attack for the smallest perturbation; that
attack's rows of a radius show its image where that lies in the ball, and else the clean one. `linf`
and `l2`, the norms of the perturbation, are in the units of pixels in [0, 1]. `iterations` is what
the attack took to reach the image, -1 where it found none. `loss` is the cross-entropy on the model
that was attacked (on the model itself in clean rows) and `zero_gradient` tells whether the attack's
first gradient there was exactly zero.
"""


def results_rows(count: int, values: Mapping[str, Any]) -> ResultsTable:
    """Returns `count` rows, one per image in their order.

    Args:
        count: Number of images.
        values: Every column but `image_index`: an array of `count` entries, or one value for all.
    """
    columns = {"image_index": np.arange(count), **values}
    arrays = [
        pa.array(np.broadcast_to(np.asarray(columns[field.name]), (count,)), type=field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def join_results(tables: Sequence[ResultsTable]) -> ResultsTable:
    """Returns the rows of all tables, in order."""
    return pa.concat_tables(tables).combine_chunks()


def write_results(path: pathlib.Path, results: ResultsTable) -> None:
    """Writes `results` as a Parquet file, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(results.cast(SCHEMA), sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def read_results(path: pathlib.Path) -> ResultsTable:
    """Reads what `write_results` wrote.

    Raises:
        SfmError: If the file is missing, damaged or has other columns.
    """
    try:
        results = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise SfmError(
            f"Cannot read results {path} ({error}); run the evaluation again."
        ) from error
    if not results.schema.equals(SCHEMA):
        raise SfmError(
            f"Results {path} have columns {', '.join(results.column_names)}; expected "
            f"{', '.join(SCHEMA.names)} with their types. Run the evaluation again."
        )
    return results
