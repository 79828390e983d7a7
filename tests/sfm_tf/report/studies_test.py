import shutil

import numpy as np
import pytest

from sfm_tf import testing
from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.config import DataConfig
from sfm_tf.report.shown_images import defence_images
from sfm_tf.report.studies import find_studies, study_fields
from sfm_tf.training.loading import load_defended_model

WEIGHTS = {"semantic_weight": 20.0, "reconstruction_weight": 1.0, "epochs": 4}
SCORES = {"clean": 0.9, "black_box": 0.8, "gray_box": 0.7, "examples": 50, "epsilon": 16.0}
TRIAL = {**WEIGHTS, **SCORES, "rho": 1.6, "collapse": "", "failure": ""}


def make(run_directory, stage, records, produce):
    execution = Execution(
        stage=stage,
        module="sfm_tf.testing",
        configs={"data": DataConfig()},
        seed=0,
        inputs={"ingest": records},
    )
    return execute(execution, run_directory, produce).artifact


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory):
    """A working directory, its records and models, and a tuning and ablations of them."""
    run_directory = RunDirectory(tmp_path_factory.mktemp("run"))
    records = testing.make_records(run_directory)
    models = testing.make_models(run_directory, records)

    def tuned(folder):
        trials = [{**TRIAL, "sparsity_weight": weight} for weight in (0.3, 0.2)]
        write_json(folder / "trials.json", {"trials": trials})
        write_json(folder / "best.json", trials[1])

    def ablated(folder):
        entry = {**TRIAL, "words": "no semantic loss", "name": "no_semantic_loss"}
        failed = {**entry, "words": "frozen target", "name": "frozen", "failure": "A nan."}
        write_json(folder / "ablations.json", [entry, failed])
        shutil.copytree(models.folder, folder / "no_semantic_loss")

    make(run_directory, "tune", records, tuned)
    make(run_directory, "ablate", records, ablated)
    return run_directory, records, models


def test_studies_of_the_same_records_are_found(made):
    run_directory, records, _ = made
    found = find_studies(run_directory, records)
    assert found == {stage: run_directory.latest(stage) for stage in ("tune", "ablate")}


def test_nothing_is_found_where_nothing_has_run_or_only_on_other_records(made, tmp_path):
    run_directory, _, models = made
    empty = RunDirectory(tmp_path)
    assert find_studies(empty, models) == {}
    # Any other artifact stands for other records.
    assert find_studies(run_directory, models) == {}
    assert study_fields({}, np.zeros((1, 8, 8, 1), np.float32)) == {}


def test_figures_3_and_5_are_of_the_stored_trials_and_models(made):
    run_directory, records, models = made
    images = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
    fields = study_fields(find_studies(run_directory, records), images)
    assert [point["sparsity_weight"] for point in fields["tuning"]] == [0.2, 0.3]
    assert [entry["words"] for entry in fields["ablation_scores"]] == [
        "no semantic loss",
        "frozen target",
    ]
    (words, gallery), *others = fields["ablations"].items()
    assert (words, others) == ("no semantic loss", [])
    expected = defence_images(load_defended_model(models.folder), images)
    np.testing.assert_allclose(gallery.masks, expected.masks, atol=1e-6)
    np.testing.assert_array_equal(gallery.images, images)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
