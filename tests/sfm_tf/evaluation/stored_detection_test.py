import json

import numpy as np
import pytest

from sfm_tf import testing
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.config import ComparedConfig, EvaluationConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.samples import Samples
from sfm_tf.evaluation.stored_detection import (
    AWARE_ATTACK,
    DETECTION_FILE,
    Detector,
    guarded_model,
    write_detection,
)
from sfm_tf.evaluation.subjects import ModelFolders, load_subjects
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import read_schema

CONFIG = EvaluationConfig(num_examples=12, attacks=("fgsm",), epsilons=(16.0,), iterations=2)


@pytest.fixture(name="evaluated", scope="module")
def _evaluated(tmp_path_factory):
    run_directory = RunDirectory(tmp_path_factory.mktemp("run"))
    evaluation = testing.make_evaluation(run_directory)
    records = run_directory.latest("ingest").folder
    schema = read_schema(records)
    images, labels = load_split(records, "test", schema, 12)
    validation_images, _ = load_split(records, "validation", schema)
    folders = ModelFolders(run_directory.latest("train").folder)
    models = load_subjects(CONFIG, ComparedConfig(), folders, schema).models
    store = AdversarialStore(evaluation.folder / "adversarial")
    return models, Samples(images, labels, 10), validation_images, store


def _detect(evaluated, folder, models=None):
    own, samples, validation_images, store = evaluated
    detector = Detector("bit_depth_3+median_2", validation_images)
    return write_detection(
        detector, models or own, samples, CONFIG, 0, store, folder, lambda *_: None
    )


def test_each_stored_set_of_the_bare_classifier_is_scored_once_and_the_aware_attack(
    evaluated, tmp_path
):
    summary = _detect(evaluated, tmp_path)
    attacked = [(entry["threat_model"], entry["attack"]) for entry in summary["attacked"]]
    # Gray and white box of a bare classifier share their images.
    assert attacked == [("black_box", "fgsm"), ("gray_box", "fgsm"), ("adaptive", AWARE_ATTACK)]
    assert {entry["all"]["examples"] for entry in summary["attacked"]} == {12}
    assert summary["clean"]["examples"] == 12
    assert summary["validation"]["examples"] == len(evaluated[2])
    assert summary["validation"]["rate"] <= 0.05
    assert json.loads((tmp_path / DETECTION_FILE).read_text()) == summary


def test_the_bare_classifier_is_what_is_guarded(evaluated, tmp_path):
    models = evaluated[0]
    assert guarded_model(models) == "undefended"
    assert guarded_model({"model": models["undefended"]}) == "model"
    only_masked = {"sfm": models["sfm"]}
    assert guarded_model(only_masked) is None
    with pytest.raises(SfmError, match="add undefended to --defences"):
        _detect(evaluated, tmp_path, only_masked)


def test_a_set_that_is_gone_is_told(evaluated, tmp_path):
    models, samples, validation_images, store = evaluated
    empty = AdversarialStore(tmp_path / "empty")
    empty.folder.mkdir()
    empty.write_index(store.read_index())
    with pytest.raises(SfmError, match="is gone; run the evaluation with --force"):
        _detect((models, samples, validation_images, empty), tmp_path)
    assert not np.any([path.name == DETECTION_FILE for path in tmp_path.iterdir()])


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
