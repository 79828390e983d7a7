import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import (
    AutoAttack,
    HopSkipJump,
    ProjectedGradientDescent,
)
from art.defences.preprocessor import SpatialSmoothingTensorFlowV2
from art.defences.preprocessor.preprocessor import PreprocessorTensorFlowV2
from art.estimators.classification.tensorflow import TensorFlowV2Classifier
from art.preprocessing.expectation_over_transformation import EoTBrightnessTensorFlow
from scipy.special import softmax

from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import (
    BatchedTensorFlowClassifier,
    classifier_logits,
    wrap_classifier,
)

SHAPE = (2, 3, 1)


class CountingModel(keras.Model):
    """Linear logits; remembers the largest batch it was shown, eagerly or compiled."""

    def __init__(self):
        super().__init__()
        self.kernel = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
        self.largest_batch = tf.Variable(0)

    def call(self, images):
        self.largest_batch.assign(tf.maximum(self.largest_batch, tf.shape(images)[0]))
        return tf.reshape(images, (-1, 6)) @ self.kernel


class Halving(PreprocessorTensorFlowV2):
    def forward(self, x, y=None):
        return 0.5 * x, y


def _images(count):
    return np.random.default_rng(1).uniform(0.3, 0.7, (count, *SHAPE)).astype(np.float32)


def test_predict_never_shows_the_model_more_than_the_batch_size():
    model = CountingModel()
    classifier = wrap_classifier(model, 3, SHAPE, batch_size=4)
    images = _images(11)
    logits = classifier.predict(images)
    np.testing.assert_allclose(logits, images.reshape(11, 6) @ model.kernel, atol=1e-6)
    assert model.largest_batch.numpy() == 4
    model.largest_batch.assign(0)
    classifier.predict(images, batch_size=3)
    assert model.largest_batch.numpy() == 3
    assert classifier.predict(images[:0]).shape == (0, 3)


def test_art_itself_still_ignores_the_batch_size():
    """Pins the defect that `BatchedTensorFlowClassifier` is there for; failing is good news."""
    model = CountingModel()
    TensorFlowV2Classifier(model, 3, SHAPE).predict(_images(11), batch_size=4)
    assert model.largest_batch.numpy() == 11


def test_loss_gradient_is_that_of_summed_cross_entropy():
    model, images, labels = CountingModel(), _images(5), np.array([0, 1, 2, 0, 1])
    classifier = wrap_classifier(model, 3, SHAPE, 4)
    one_hot = np.eye(3, dtype=np.float32)[labels]
    expected = (softmax(images.reshape(5, 6) @ model.kernel, axis=1) - one_hot) @ model.kernel.T
    gradient = classifier.loss_gradient(images, one_hot)
    np.testing.assert_allclose(gradient, expected.reshape(5, *SHAPE), atol=1e-6)


@pytest.mark.parametrize(
    "make_attack",
    [
        lambda classifier: ProjectedGradientDescent(
            classifier, eps=0.3, eps_step=0.1, max_iter=5, batch_size=4, verbose=False
        ),
        lambda classifier: HopSkipJump(
            classifier, max_iter=2, max_eval=50, init_eval=10, init_size=50, verbose=False
        ),
    ],
    ids=["gradients", "decisions"],
)
def test_attacks_of_art_fool_the_wrapped_classifier(make_attack):
    classifier = wrap_classifier(CountingModel(), 3, SHAPE, 4)
    images = _images(5)
    before = classifier.predict(images).argmax(axis=1)
    np.random.seed(0)
    after = classifier.predict(make_attack(classifier).generate(images)).argmax(axis=1)
    assert np.mean(before != after) >= 0.8


def test_arts_autoattack_still_is_another_one_and_still_does_not_run():
    """Pins what `sfm_tf.attacks.autoattack` is for."""
    classifier = wrap_classifier(CountingModel(), 3, SHAPE, 4)
    attack = AutoAttack(classifier, eps=0.1, eps_step=0.05)
    assert [type(part).__name__ for part in attack.attacks] == [
        "AutoProjectedGradientDescent",
        "AutoProjectedGradientDescent",
        "DeepFool",
        "SquareAttack",
    ]
    with pytest.raises(ModuleNotFoundError, match="multiprocess"):
        attack.generate(_images(2))


def test_arts_expectation_over_transformation_still_loses_the_batch():
    """Pins what the option `gradient_samples` is for."""
    brightness = EoTBrightnessTensorFlow(nb_samples=2, clip_values=(0.0, 1.0), delta=0.1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Can not squeeze"):
        brightness.forward(tf.constant(_images(3)), tf.constant(np.eye(3, dtype=np.float32)))


def test_arts_gradient_is_still_zero_where_the_model_is_confident():
    """Pins what `sfm_tf.models.logit_losses.stable_cross_entropy` is for."""
    model = CountingModel()
    model.kernel = np.zeros((6, 3), np.float32)
    model.kernel[:, 0] = 40.0
    labels = np.eye(3, dtype=np.float32)[[0, 0]]
    gradient = wrap_classifier(model, 3, SHAPE, 4).loss_gradient(_images(2), labels)
    assert np.abs(gradient).max() == 0.0


def test_arts_median_still_fails_with_clip_values():
    """Pins one reason for `sfm_tf.preprocessors`; another is that it takes odd windows only."""
    median = SpatialSmoothingTensorFlowV2(window_size=3, clip_values=(0.0, 1.0))
    with pytest.raises(AttributeError, match="clip_by_value"):
        median(_images(2))


def test_preprocessors_apply_also_inside_a_compiled_function():
    model, images = CountingModel(), _images(4)
    classifier = BatchedTensorFlowClassifier(
        model, 3, SHAPE, batch_size=3, preprocessing_defences=Halving(), clip_values=(0, 1)
    )
    compiled = tf.function(lambda batch: classifier_logits(classifier, batch))
    expected = 0.5 * images.reshape(4, 6) @ model.kernel
    np.testing.assert_allclose(compiled(images), expected, atol=1e-6)
    np.testing.assert_allclose(classifier.predict(images), expected, atol=1e-6)


@pytest.mark.parametrize(("class_count", "batch_size"), [(0, 4), (3, 0)])
def test_counts_below_one_are_refused(class_count, batch_size):
    with pytest.raises(SfmError, match="expected at least 1"):
        wrap_classifier(CountingModel(), class_count, SHAPE, batch_size)
