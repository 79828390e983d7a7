import dataclasses
import json
import shutil

import pyarrow.parquet
import pytest

from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.audit.audited_evaluation import METRICS_FILE, evaluation_settings, read_metrics
from sfm_tf.errors import SfmError
from tests import artifacts


def test_writes_rows_summary_images_and_verdict_that_agree(new_run):
    folder = artifacts.make_evaluation(new_run("evaluate"), min_accuracy=1.0).folder
    rows = pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
    # 2 defences x (clean + 3 threat models x 1 attack) and re-draws of one, x 12 images.
    assert len(rows) == (2 * (1 + 3) + 1) * 12
    clean = [row for row in rows if (row["defence"], row["attack"]) == ("sfm", "clean")]
    accuracy = sum(row["prediction"] == row["label"] for row in clean) / 12
    [entry] = [
        entry for entry in read_json(folder / METRICS_FILE)["clean"] if entry["defence"] == "sfm"
    ]
    assert entry["accuracy"] == pytest.approx(accuracy)
    assert f"{accuracy:.4f}" in (folder / "NOT_BLESSED").read_text()
    index = json.loads((folder / "adversarial" / "index.json").read_text())
    assert {entry["threat_model"] for entry in index} == {"black_box", "gray_box", "white_box"}


def test_settings_are_those_the_evaluation_ran_with(evaluation):
    settings = evaluation_settings(evaluation)
    assert (settings.num_examples, settings.attacks, settings.epsilons) == (12, ("fgsm",), (16.0,))


def test_an_evaluation_of_another_version_is_to_be_made_again(evaluation, tmp_path):
    shutil.copytree(evaluation.folder, tmp_path / "older")
    older = dataclasses.replace(evaluation, folder=tmp_path / "older")
    values = read_json(older.folder / METRICS_FILE)
    values["under_attack"][0]["attack"] = "gone"
    write_json(older.folder / METRICS_FILE, values)
    with pytest.raises(SfmError, match=r"older .*it ran gone, which .*`pipelines\.evaluate` again"):
        read_metrics(older)
    older.manifest.config["evaluation"]["swiftness"] = 3
    with pytest.raises(SfmError, match=r"settings swiftness, which .*`pipelines\.evaluate` again"):
        evaluation_settings(older)
