import keras
import numpy as np
import pytest

from sfm_tf.evaluation.model_digest import model_digest
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor

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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
