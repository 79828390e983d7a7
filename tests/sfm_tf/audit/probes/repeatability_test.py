import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.audit.probes.repeatability import TOLERANCE, measure_repeatability
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.imported_model import load_classifier
from sfm_tf.models.resnet import build_classifier
from sfm_tf.preprocessors.chain import parse_preprocessor

SHAPE = (8, 8, 1)
COUNT = 20


class Odd(keras.layers.Layer):
    """Applies a function to images, with a number of its own that counts the calls."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.calls = tf.Variable(0.0, trainable=False)

    def call(self, images):
        self.calls.assign_add(1.0)
        return self.function(images, self.calls)


def _classifier(function=None):
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input(SHAPE), *([Odd(function)] if function else []), *dense])


def _measure(model, batch_size=8):
    images = np.random.default_rng(0).random((COUNT, *SHAPE), dtype=np.float32)
    samples = check_samples(images, np.zeros(COUNT, int), model.classifier)
    return measure_repeatability(model, samples, batch_size)


def _mirror(images, calls):
    coins = tf.random.uniform((tf.shape(images)[0], 1, 1, 1)) < 0.5
    return tf.where(coins, images, tf.reverse(images, [2]))


KINDS = {
    "plain": (None, "repeatable"),
    "noise of a tenth of the range": (
        lambda images, calls: images + 0.1 * tf.random.normal(tf.shape(images)),
        "random",
    ),
    "noise of one grey level": (
        lambda images, calls: images + tf.random.normal(tf.shape(images)) / 255.0,
        "random",
    ),
    "every other image mirrored": (_mirror, "random"),
    "dropout": (lambda images, calls: tf.nn.dropout(images, 0.5), "random"),
    "one draw for a whole batch": (
        lambda images, calls: images * tf.random.uniform((1, 8, 8, 1)),
        "changing",
    ),
    "a counter": (lambda images, calls: images * (1.0 + 0.1 * calls), "changing"),
    "statistics of the batch": (
        lambda images, calls: images / tf.math.reduce_std(images),
        "batch",
    ),
    "the first image of the batch": (
        lambda images, calls: images + 0.1 * images[:1],
        "batch",
    ),
}


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize(("function", "kind"), KINDS.values(), ids=KINDS)
def test_what_an_answer_depends_on_is_measured(function, kind, batch_size):
    if batch_size == 1 and kind == "batch":
        pytest.skip("A batch of one image has no others.")
    found = _measure(DefendedModel(_classifier(function)), batch_size)
    assert {name: view.kind for name, view in found.items()} == {"served": kind}
    assert found["served"].examples == 16


def test_a_saved_model_that_mirrors_images_at_random_is_random(tmp_path):
    layers = [keras.layers.RandomFlip("horizontal"), *_classifier().layers]
    network = keras.Sequential([keras.Input(SHAPE), *layers])
    answers = tf.function(
        lambda images: {"logits": network(images, training=True)},
        input_signature=[tf.TensorSpec((None, *SHAPE), name="images")],
    )
    exported = tf.Module()
    exported.kept = [variable.value for variable in network.variables]
    tf.saved_model.save(exported, str(tmp_path), signatures=answers)
    loaded = load_classifier(tmp_path, SHAPE, 10)
    assert _measure(DefendedModel(loaded))["served"].kind == "random"


@pytest.mark.parametrize("preprocessor", ["none", "bit_depth_4", "median_2"])
def test_rounding_is_a_tenth_of_the_tolerance_at_most(preprocessor):
    shape = (32, 32, 3)
    network = build_classifier("resnet20", shape, 10, 4, seed=0)
    masker = keras.Sequential(
        [keras.Input(shape), keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")]
    )
    model = DefendedModel(network, masker, parse_preprocessor(preprocessor))
    images = np.random.default_rng(0).random((16, *shape), dtype=np.float32)
    samples = check_samples(images, np.zeros(16, int), network)
    (found,) = measure_repeatability(model, samples, 16).values()
    assert found.kind == "repeatable"
    assert found.batches.largest < 0.1 * TOLERANCE


def test_outputs_have_their_range():
    model = _classifier()
    found = _measure(DefendedModel(model))["served"]
    images = np.random.default_rng(0).random((COUNT, *SHAPE), dtype=np.float32)[:16]
    logits = np.asarray(model(images))
    assert (found.lowest, found.highest) == pytest.approx((logits.min(), logits.max()), rel=1e-5)
