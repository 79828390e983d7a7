import pathlib

import pytest

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.run_directory import Artifact
from sfm_tf.report.training_costs import training_seconds

_TIMING = {"classifier_seconds": 100.0, "masker_seconds": 60.0, "source_seconds": 40.0}
_TRAINING = {"pretraining_epochs": 4, "epochs": 6, "source_epochs": 5}


def _artifact(folder: pathlib.Path, timing=None, wall_seconds=0.0) -> Artifact:
    folder.mkdir()
    if timing is not None:
        write_json(folder / "timing.json", timing)
    manifest = Manifest(
        stage=folder.name,
        fingerprint="",
        content="",
        config={"training": _TRAINING},
        seed=0,
        inputs={},
        code_version="",
        package_versions={},
        started="",
        wall_seconds=wall_seconds,
    )
    return Artifact(folder, manifest)


def test_a_defence_costs_the_classifier_and_what_was_trained_for_it(tmp_path):
    parts = {"classifier_seconds": 500.0, "masker_seconds": 30.0}
    inputs = {
        "train": _artifact(tmp_path / "train", _TIMING),
        "fit_quilting": _artifact(tmp_path / "fit_quilting", wall_seconds=7.0),
        "train_adversarially": _artifact(
            tmp_path / "train_adversarially", {"sfm_adversarial_training": parts}
        ),
    }
    names = ["undefended", "sfm", "jpeg", "quilting", "sfm_adversarial_training"]
    assert training_seconds(inputs, names) == {
        "undefended": 100.0,
        "sfm": 160.0,
        "jpeg": 100.0,
        "quilting": 107.0,
        "sfm_adversarial_training": 530.0,
    }


def test_an_alternation_by_steps_is_compared_with_passes_of_the_source_model(tmp_path):
    timing = {**_TIMING, "classifier_seconds": 30.0, "masker_seconds": 0.0, "both_seconds": 120.0}
    inputs = {"train": _artifact(tmp_path / "train", timing)}
    # 10 passes, of which 5 took the source model 40 seconds.
    assert training_seconds(inputs, ["undefended", "sfm"]) == {"undefended": 80.0, "sfm": 150.0}


def test_a_model_of_ones_own_has_no_training(tmp_path):
    assert training_seconds({"ingest": _artifact(tmp_path / "ingest")}, ["model"]) == {}


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
