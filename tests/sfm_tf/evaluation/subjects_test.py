import pathlib

import keras
import numpy as np
import pytest

from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.subjects import (
    ModelFolders,
    imported_digest,
    load_subjects,
    model_digest,
    own_model_kept,
    with_kept_model,
    without_the_untrained,
)
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.preprocessors.draws import FreshDraws, KeyedDraws, RepeatableFreshDraws
from sfm_tf.records.schema import read_schema

SHAPE = (2, 2, 1)


def _classifier(activation="relu", mean=0.5):
    layers = [
        keras.Input(SHAPE, name="images"),
        keras.layers.Normalization(mean=[mean], variance=[0.25], name="normalization"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(4, activation, name="hidden"),
        keras.layers.Dense(3, name="logits"),
    ]
    model = keras.Sequential(layers, name="classifier")
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=weight.shape) for weight in model.weights])
    return model


def _masker():
    layers = [keras.Input(SHAPE), keras.layers.Conv2D(1, 1, activation="sigmoid")]
    return keras.Sequential(layers)


def test_models_that_compute_the_same_are_equal():
    assert model_digest(_classifier()) == model_digest(_classifier())


def test_saving_and_loading_changes_nothing(tmp_path):
    model = _classifier()
    model.compile("sgd", "mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert model_digest(loaded) == model_digest(model) == model_digest(_classifier())


def test_a_single_changed_weight_shows():
    changed = _classifier()
    kernel = changed.layers[-1].kernel.numpy()
    kernel[0, 0] = np.nextafter(kernel[0, 0], np.float32(np.inf))
    changed.layers[-1].kernel.assign(kernel)
    assert model_digest(changed) != model_digest(_classifier())


@pytest.mark.parametrize("options", [{"activation": "tanh"}, {"mean": 0.4}])
def test_the_architecture_shows(options):
    assert model_digest(_classifier(**options)) != model_digest(_classifier())


def test_a_model_without_defence_is_its_classifier():
    classifier = _classifier()
    defended = DefendedModel(classifier, _masker(), parse_preprocessor("bit_depth_3"))
    undefended = DefendedModel(classifier)
    assert model_digest(undefended) == model_digest(classifier)
    assert model_digest(undefended.without_preprocessor()) == model_digest(classifier)
    assert model_digest(defended) != model_digest(classifier)


def test_each_part_of_the_defence_shows():
    classifier, masker = _classifier(), _masker()
    models = [
        DefendedModel(classifier),
        DefendedModel(classifier, masker),
        DefendedModel(classifier, _masker()),
        DefendedModel(classifier, None, parse_preprocessor("bit_depth_3")),
        DefendedModel(classifier, masker, parse_preprocessor("bit_depth_3")),
        DefendedModel(classifier, masker, parse_preprocessor("bit_depth_4")),
        DefendedModel(classifier, masker, parse_preprocessor("bit_depth_3", "smooth")),
    ]
    assert len({model_digest(model) for model in models}) == len(models)


def test_without_preprocessing_the_surrogate_does_not_matter():
    classifier, masker = _classifier(), _masker()
    smooth = DefendedModel(classifier, masker, parse_preprocessor("none", "smooth"))
    assert model_digest(smooth) == model_digest(DefendedModel(classifier, masker))


def test_who_draws_shows_of_a_random_model_and_of_no_other():
    classifier, draws = _classifier(), (KeyedDraws(), KeyedDraws(b"0" * 16))
    draws = [*draws, RepeatableFreshDraws(), RepeatableFreshDraws().for_attacker()]
    for spec, count in {"total_variation_50_30": 4, "bit_depth_3": 1, "none": 1}.items():
        model = DefendedModel(classifier, None, parse_preprocessor(spec))
        assert len({model_digest(model.with_draws(each)) for each in draws}) == count


IMAGES = np.random.default_rng(0).random((3, 8, 8, 1), dtype=np.float32)


@pytest.fixture(name="trained", scope="module")
def _trained(records, models):
    return ComparedConfig(), ModelFolders(models.folder), read_schema(records.folder)


def _subjects_classifier(path, seed):
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
    own = _subjects_classifier(tmp_path / "own.keras", 1)
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
    _subjects_classifier(tmp_path / "own.keras", 1)
    config = EvaluationConfig(model=str(tmp_path / "own.keras"), defences=("undefended", "tvm"))
    models = load_subjects(config, ComparedConfig(), ModelFolders(None), trained[2]).models
    assert list(models) == ["model", "tvm"]
    assert models["tvm"].classifier is models["model"].classifier


@pytest.mark.parametrize(
    ("draws", "expected"), [("keyed", KeyedDraws()), ("fresh", RepeatableFreshDraws())]
)
def test_random_defences_draw_as_the_settings_say(trained, draws, expected):
    config = EvaluationConfig(defences=("tvm", "jpeg"), draws=draws)
    models = load_subjects(config, *trained).models
    assert models["tvm"].preprocessor.draws == expected
    served = models["tvm"].for_service(b"k" * 16).preprocessor.draws
    assert served == {"keyed": KeyedDraws(b"k" * 16), "fresh": FreshDraws()}[draws]
    assert models["jpeg"].for_service(b"k" * 16) is models["jpeg"]


def test_what_was_not_fitted_is_not_evaluated(trained):
    with pytest.raises(SfmError, match="Unknown preprocessor 'quilting_1'"):
        load_subjects(EvaluationConfig(defences=("quilting",)), *trained)


def test_adversarially_trained_defences_are_left_out_where_there_are_none():
    names = ("undefended", "adversarial_training", "sfm", "sfm_adversarial_training")
    assert without_the_untrained(names, False) == ("undefended", "sfm")
    assert without_the_untrained(names, True) == names


def test_a_source_model_of_ones_own_takes_the_place_of_the_trained_one(trained, tmp_path):
    source = _subjects_classifier(tmp_path / "source.keras", 2)
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
    with pytest.raises(SfmError, match=r"No model .*none.keras; expected a .keras or .h5 file"):
        imported_digest(config)


def test_ones_own_model_is_copied_without_hidden_files_until_it_is_refused(tmp_path):
    original, artifact = tmp_path / "cnn", tmp_path / "artifact"
    (original / ".cache").mkdir(parents=True)
    (original / "saved_model.pb").write_bytes(b"one")
    artifact.mkdir()
    config = EvaluationConfig(model=str(original))
    digest = imported_digest(config)
    for _ in range(2):
        with own_model_kept(config, artifact, digest):
            kept = with_kept_model(config, artifact).model
            assert kept == str(artifact / "own_model" / "cnn")
    assert [path.name for path in pathlib.Path(kept).iterdir()] == ["saved_model.pb"]
    (original / "saved_model.pb").write_bytes(b"two")
    with (
        pytest.raises(SfmError, match="changed while it was read"),
        own_model_kept(config, artifact, digest),
    ):
        pass
    assert list(artifact.iterdir()) == []


def test_an_evaluation_of_trained_models_keeps_no_copy(tmp_path):
    with own_model_kept(EvaluationConfig(), tmp_path, ""):
        assert list(tmp_path.iterdir()) == []


def test_there_has_to_be_some_model(trained):
    with pytest.raises(SfmError, match="train one or give --model"):
        load_subjects(EvaluationConfig(), ComparedConfig(), ModelFolders(None), trained[2])
