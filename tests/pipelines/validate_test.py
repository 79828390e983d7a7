import dataclasses
import json

import pytest
import tensorflow as tf

from pipelines.ingest import ingest
from pipelines.validate import ANOMALIES_FILE, check_validated, stop_on_anomaly, validate
from sfm_tf import experiments
from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.records.anomalies import Anomaly
from tests.pipelines.tiny_digits import digits


def _leak_a_training_image(folder):
    """Replaces the first test image by the first training image."""
    train = next(tf.data.TFRecordDataset(str(next(folder.glob("train-*")))).as_numpy_iterator())
    path = str(next(folder.glob("test-*")))
    records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
    with tf.io.TFRecordWriter(path) as writer:
        for record in [train, *records[1:]]:
            writer.write(record)


def test_real_digits_have_no_anomaly(tmp_path):
    run_directory = RunDirectory(tmp_path)
    ingest(run_directory, experiments.preset("digits"), False)
    artifact = validate(run_directory, experiments.preset("digits"), False)
    assert json.loads((artifact.folder / "anomalies.json").read_text()) == []


def test_a_leaked_image_stops_the_run_naming_its_place_each_time(new_run):
    run_directory = new_run("ingest")
    _leak_a_training_image(run_directory.latest("ingest").folder)
    message = (
        r"Anomalies in the records: \d\. \(1\) leakage "
        r"\(shard test-00000-of-00001.*index 0, label \d\)"
    )
    for _ in range(2):
        with pytest.raises(SfmError, match=message):
            validate(run_directory, digits(), False)


def test_anomalies_are_listed_in_one_line_with_a_flag_that_allows_them(tmp_path):
    kinds = [("leakage", True)] * 12 + [("label_conflict", False), ("empty_class", True)]
    write_json(
        tmp_path / ANOMALIES_FILE,
        [
            {**dataclasses.asdict(Anomaly(kind, f"It is {index}.")), "stops": stops}
            for index, (kind, stops) in enumerate(kinds)
        ],
    )
    with pytest.raises(SfmError) as info:
        stop_on_anomaly(Artifact(tmp_path, None))
    message = str(info.value)
    assert message.startswith("Anomalies in the records: 13. (1) leakage: It is 0. (2) leakage: ")
    assert "(10) leakage: It is 9. And 3 more. The full list is in " in message
    # What was allowed stays allowed: a flag replaces the preset's value.
    assert message.endswith("--allowed_anomalies=empty_class,label_conflict,leakage.")


def test_an_allowed_kind_does_not_stop_the_run(new_run):
    run_directory = new_run("ingest")
    _leak_a_training_image(run_directory.latest("ingest").folder)
    allowed = ("leakage", "label_conflict", "empty_class")
    artifact = validate(run_directory, digits(allowed_anomalies=allowed), False)
    anomalies = json.loads((artifact.folder / "anomalies.json").read_text())
    assert "leakage" in [anomaly["kind"] for anomaly in anomalies]
    assert not any(anomaly["stops"] for anomaly in anomalies)
    check_validated(run_directory, run_directory.latest("ingest"))


def test_other_records_than_the_validated_ones_are_not_accepted(validated):
    other = ingest(validated, digits(seed=1), False)
    with pytest.raises(
        SfmError, match="have not been validated; run `python -m pipelines.validate"
    ):
        check_validated(validated, other)
