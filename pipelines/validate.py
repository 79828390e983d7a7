"""Checks the records before training, and stops the run at an anomaly.

    python -m pipelines.validate --workdir=runs/cifar10

TFX counterpart: ExampleValidator. Reads the records of `pipelines.ingest`. Writes
<workdir>/validate/<fingerprint>/anomalies.json. An anomaly is, for example, an empty class, an
image of another shape, an unreadable image, or a test image that is also a training image. The
error names the shard, index and label. --allowed_anomalies lets kinds of anomalies pass.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from pipelines import command_line
from pipelines.stage_execution import ProgressLine, execute_stage
from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.errors import SfmError, numbered
from sfm_tf.experiments import Experiment
from sfm_tf.records import anomalies
from sfm_tf.records.schema import read_schema

MODULE = "pipelines.validate"
ANOMALIES_FILE = "anomalies.json"
command_line.define_flags(["validation"], MODULE)


def validate(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the list of anomalies.

    Raises:
        SfmError: If there is one of a kind that is not allowed; the artifact lists them all.
    """
    records = run_directory.latest("ingest")
    allowed = experiment.validation.allowed_anomalies

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        del progress  # One pass over the records: shorter than a line to say so.
        found = anomalies.find_anomalies(records.folder, read_schema(records.folder))
        listed = [
            {**dataclasses.asdict(anomaly), "stops": anomaly.kind not in allowed}
            for anomaly in found
        ]
        write_json(folder / ANOMALIES_FILE, listed)

    execution = Execution(
        stage="validate",
        modules=["sfm_tf.records.anomalies"],
        configs={"validation": experiment.validation},
        seed=experiment.seed,
        inputs={"ingest": records},
    )
    artifact = execute_stage(execution, run_directory, produce, force)
    stop_on_anomaly(artifact)
    return artifact


def stop_on_anomaly(validation: Artifact) -> None:
    """Raises `SfmError` naming the first anomalies that must stop a run, if any."""
    path = validation.folder / ANOMALIES_FILE
    listed = read_json(path)
    found = [anomaly for anomaly in listed if anomaly["stops"]]
    if not found:
        return
    kinds = sorted({anomaly["kind"] for anomaly in listed})
    raise SfmError(
        f"Anomalies in the records: {len(found)}. {numbered(list(map(_sentence, found)))} "
        f"The full list is in {path}. Correct the dataset and ingest it again, or allow these "
        f"kinds with --allowed_anomalies={','.join(kinds)}."
    )


def _sentence(anomaly: Mapping[str, Any]) -> str:
    place = ", ".join(
        f"{name} {anomaly[name]}"
        for name in ("shard", "index", "label")
        if anomaly[name] not in ("", None)
    )
    where = f" ({place})" if place else ""
    return f"{anomaly['kind']}{where}: {anomaly['message']}"


def check_validated(run_directory: RunDirectory, records: Artifact) -> None:
    """Raises `SfmError` unless these records were validated and nothing stops their use."""
    validation = run_directory.latest("validate")
    if validation.manifest.inputs["ingest"] != records.manifest.fingerprint:
        raise SfmError(
            f"The latest records, {records.folder}, have not been validated; run "
            f"`python -m pipelines.validate {run_directory.flag}` first."
        )
    stop_on_anomaly(validation)


if __name__ == "__main__":
    command_line.start([MODULE], validate)
