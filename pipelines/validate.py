"""Checks the records before anything is trained on them, and stops the run on an anomaly.

    python -m pipelines.validate --workdir=runs/cifar10

TFX counterpart: ExampleValidator. Reads the records of `pipelines.ingest`; writes anomalies.json
into <workdir>/validate/<fingerprint>/. An empty class, a wrong shape, an unreadable image or a test
image among the training ones ends it with an error that names shard, index and label.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from pipelines import command_line, flag_definitions
from pipelines.progress_line import ProgressLine
from pipelines.stage_execution import execute_stage
from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.config import Experiment
from sfm_tf.errors import SfmError
from sfm_tf.records import anomalies
from sfm_tf.records.schema import read_schema

MODULE = "pipelines.validate"
flag_definitions.define_flags(["validation"], MODULE)


def validate(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the list of anomalies.

    Raises:
        SfmError: If there is one of a kind that is not allowed; the artifact lists them all.
    """
    records = run_directory.latest("ingest")

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        del progress  # One pass over the records: shorter than a line to say so.
        found = anomalies.find_anomalies(records.folder, read_schema(records.folder))
        write_json(folder / "anomalies.json", [dataclasses.asdict(anomaly) for anomaly in found])

    execution = Execution(
        stage="validate",
        module=MODULE,
        configs={},
        seed=experiment.seed,
        inputs={"ingest": records},
    )
    artifact = execute_stage(execution, run_directory, produce, force)
    _stop_on_anomaly(artifact.folder / "anomalies.json", experiment.validation.allowed_anomalies)
    return artifact


def _stop_on_anomaly(path: pathlib.Path, allowed: Sequence[str]) -> None:
    listed = json.loads(path.read_text(encoding="utf-8"))
    found = [anomaly for anomaly in listed if anomaly["kind"] not in allowed]
    if found:
        first = found[0]
        place = ", ".join(
            f"{name} {first[name]}"
            for name in ("shard", "index", "label")
            if first[name] not in ("", None)
        )
        raise SfmError(
            f"The records have {len(found)} anomalies, the first one {first['kind']} ({place}): "
            f"{first['message']} All are in {path}; mend the dataset and ingest it again."
        )


if __name__ == "__main__":
    command_line.start([MODULE], validate)
