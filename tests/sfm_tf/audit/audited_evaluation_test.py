import json

import pyarrow.parquet
import pytest

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.audit.audited_evaluation import METRICS_FILE, evaluation_settings
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
