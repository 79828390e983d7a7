import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import ProjectedGradientDescent as ArtProjectedGradientDescent
from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothing
from art.estimators.classification.tensorflow import TensorFlowV2Classifier
from scipy import ndimage

from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.defences.art_preprocessors import ImagePreprocessing, SparseFeatureMasking
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor

SHAPE = (6, 6, 3)
SPECS = ("none", "bit_depth_3", "bit_depth_4+median_2")


def _classifier():
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(SHAPE),
        keras.layers.Conv2D(4, 3, activation="tanh"),
        keras.layers.Flatten(),
        keras.layers.Dense(4),
    ]
    return keras.Sequential(layers)


def _masker():
    keras.utils.set_random_seed(1)
    layers = [keras.Input(SHAPE), keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")]
    return keras.Sequential(layers)


def _art_classifier(model, preprocessing_defences):
    return TensorFlowV2Classifier(
        model,
        4,
        SHAPE,
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
        clip_values=(0.0, 1.0),
        preprocessing_defences=preprocessing_defences,
    )


def _samples():
    random = np.random.default_rng(0)
    images = random.random((5, *SHAPE), dtype=np.float32)
    return images, np.eye(4, dtype=np.float32)[random.integers(0, 4, 5)]


def _both(spec, surrogate="identity"):
    classifier, masker = _classifier(), _masker()
    defences = [SparseFeatureMasking(masker), ImagePreprocessing(spec, surrogate)]
    defended = DefendedModel(classifier, masker, parse_preprocessor(spec, surrogate))
    return _art_classifier(classifier, defences), defended


@pytest.mark.parametrize("spec", SPECS)
def test_predictions_are_those_of_the_defended_model(spec):
    (images, _), (chained, defended) = _samples(), _both(spec)
    np.testing.assert_allclose(chained.predict(images), defended(images), atol=1e-6)
    assert np.abs(chained.predict(images) - _classifier()(images)).max() > 1e-3


@pytest.mark.parametrize("surrogate", ["identity", "smooth"])
@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_those_of_the_defended_model(spec, surrogate):
    (images, labels), (chained, defended) = _samples(), _both(spec, surrogate)
    inputs = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.nn.softmax_cross_entropy_with_logits(labels, defended(inputs))
    expected = tape.gradient(loss, inputs)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(chained.loss_gradient(images, labels), expected, atol=1e-6)


def test_preprocessing_alone_is_the_median():
    images, _ = _samples()
    expected = ndimage.median_filter(images, size=(1, 3, 3, 1), mode="reflect")
    np.testing.assert_allclose(ImagePreprocessing("median_3")(images)[0], expected, atol=1e-7)


def test_attacks_of_art_and_of_this_library_take_the_chain():
    (images, labels), (chained, defended) = _samples(), _both("bit_depth_3")
    reference = ArtProjectedGradientDescent(
        chained, eps=0.1, eps_step=0.03, max_iter=5, batch_size=5, verbose=False
    )
    attack = ProjectedGradientDescent(chained, epsilon=0.1, step_size=0.03, iterations=5)
    moved = attack.generate(images, labels)
    np.testing.assert_allclose(moved, reference.generate(images, labels), atol=1e-6)
    right = labels.argmax(axis=1)[:, None]
    change = np.asarray(defended(moved)) - np.asarray(defended(images))
    assert (np.take_along_axis(change, right, axis=1) < 0).all()


def test_neither_is_applied_when_art_trains():
    assert not SparseFeatureMasking(_masker()).apply_fit
    assert not ImagePreprocessing("none").apply_fit
    assert ImagePreprocessing("none", apply_fit=True, apply_predict=False).apply_fit


def test_parameters_are_readable_as_art_expects():
    preprocessing = ImagePreprocessing("bit_depth_3", "smooth")
    values = {name: getattr(preprocessing, name) for name in preprocessing.params}
    assert values == {
        "spec": "bit_depth_3",
        "surrogate": "smooth",
        "apply_fit": False,
        "apply_predict": True,
    }


def test_an_unknown_specification_is_refused():
    with pytest.raises(SfmError, match="Unknown preprocessor 'blur_3'"):
        ImagePreprocessing("blur_3")


def test_art_still_refuses_to_chain_its_own_preprocessors():
    """Pins the gap in ART (issues 1350 and 1888) that a TensorFlow chain fills."""
    squeezing = FeatureSqueezing(clip_values=(0, 1), bit_depth=4)
    chained = _art_classifier(_classifier(), [SpatialSmoothing(), squeezing])
    with pytest.raises(NotImplementedError, match="combination of preprocessing"):
        chained.predict(_samples()[0])


def test_art_still_never_asks_for_the_estimated_forward_pass():
    """Pins why the surrogate is inside `forward`: `estimate_forward` has no effect on attacks."""

    class Watched(ImagePreprocessing):
        estimates = 0

        def estimate_forward(self, x, y=None):
            self.estimates += 1
            return super().estimate_forward(x, y)

    watched = Watched("bit_depth_3")
    _art_classifier(_classifier(), watched).loss_gradient(*_samples())
    assert watched.estimates == 0
