import keras
import numpy as np
import pytest

from sfm_tf import testing
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.config import ComparedConfig, EvaluationConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.subjects import (
    ModelFolders,
    imported_digest,
    load_subjects,
    without_the_untrained,
)
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.records.schema import read_schema

IMAGES = np.random.default_rng(0).random((3, 8, 8, 1), dtype=np.float32)


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory):
    run_directory = RunDirectory(tmp_path_factory.mktemp("run"))
    records = testing.make_records(run_directory)
    folders = ModelFolders(testing.make_models(run_directory, records).folder)
    return ComparedConfig(), folders, read_schema(records.folder)


def _classifier(path, seed):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    model.save(path)
    return model


def test_trained_models_stand_beside_their_bare_classifier(trained):
    subjects = load_subjects(EvaluationConfig(), *trained)
    assert list(subjects.models) == ["undefended", "sfm"]
    bare, defended = subjects.models.values()
    np.testing.assert_array_equal(bare(IMAGES), defended.classifier(IMAGES, training=False))
    assert defended.masker is not None
    assert subjects.source is not None


def test_a_model_of_ones_own_stands_alone(trained, tmp_path):
    own = _classifier(tmp_path / "own.keras", 1)
    config = EvaluationConfig(model=str(tmp_path / "own.keras"))
    subjects = load_subjects(config, ComparedConfig(), ModelFolders(None), trained[2])
    assert list(subjects.models) == ["model"]
    assert isinstance(subjects.models["model"], DefendedModel)
    np.testing.assert_allclose(subjects.models["model"](IMAGES), own(IMAGES), rtol=1e-6)
    assert subjects.source is None


def test_compared_defences_stand_before_the_same_classifier_in_the_order_asked_for(trained):
    config = EvaluationConfig(defences=("jpeg+median_2", "sfm", "undefended", "sensitivity"))
    models = load_subjects(config, *trained).models
    assert list(models) == list(config.defences)
    classifiers = {id(model.classifier) for model in models.values()}
    assert len(classifiers) == 1
    assert models["jpeg+median_2"].preprocessor.spec == "jpeg_75+median_2"
    assert [model.masker is None for model in models.values()] == [True, False, True, True]


def test_compared_defences_stand_before_a_classifier_of_ones_own(trained, tmp_path):
    _classifier(tmp_path / "own.keras", 1)
    config = EvaluationConfig(model=str(tmp_path / "own.keras"), defences=("undefended", "tvm"))
    models = load_subjects(config, ComparedConfig(), ModelFolders(None), trained[2]).models
    assert list(models) == ["model", "tvm"]
    assert models["tvm"].classifier is models["model"].classifier


def test_what_was_not_fitted_is_not_evaluated(trained):
    with pytest.raises(SfmError, match="Unknown preprocessor 'quilting_1'"):
        load_subjects(EvaluationConfig(defences=("quilting",)), *trained)


def test_adversarially_trained_defences_are_left_out_where_there_are_none():
    names = ("undefended", "adversarial_training", "sfm", "sfm_adversarial_training")
    assert without_the_untrained(names, False) == ("undefended", "sfm")
    assert without_the_untrained(names, True) == names


def test_a_source_model_of_ones_own_takes_the_place_of_the_trained_one(trained, tmp_path):
    source = _classifier(tmp_path / "source.keras", 2)
    config = EvaluationConfig(source_model=str(tmp_path / "source.keras"))
    subjects = load_subjects(config, *trained)
    np.testing.assert_allclose(subjects.source(IMAGES), source(IMAGES), rtol=1e-6)


def test_another_file_under_the_same_name_has_another_digest(tmp_path):
    path = tmp_path / "own.keras"
    config = EvaluationConfig(model=str(path))
    path.write_bytes(b"one")
    first = imported_digest(config)
    path.write_bytes(b"two")
    assert imported_digest(config) != first
    assert imported_digest(EvaluationConfig()) == ""


def test_a_missing_model_is_refused_before_any_work(tmp_path):
    config = EvaluationConfig(source_model=str(tmp_path / "none.keras"))
    with pytest.raises(SfmError, match=r"No model .*none.keras; expected a .keras file"):
        imported_digest(config)


def test_there_has_to_be_some_model(trained):
    with pytest.raises(SfmError, match="train one or give --model"):
        load_subjects(EvaluationConfig(), ComparedConfig(), ModelFolders(None), trained[2])


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
