import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.audit.probes.probed_models import Setup, SwitchedModel, make_variants
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.operation import Operation

SHAPE = (4, 4, 1)
CLASSIFIER = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3)])
MASKER = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(1, 1, activation="sigmoid")])
SQUEEZE = parse_preprocessor("bit_depth_2", "smooth")


def test_each_variant_lacks_its_part():
    variants = make_variants(DefendedModel(CLASSIFIER, MASKER, SQUEEZE))
    assert [variant.attacked for variant in variants] == [
        Setup(True, "attacker"),
        Setup(True, "none"),
        Setup(False, "attacker"),
        Setup(False, "none"),
        Setup(True, "other_surrogate"),
    ]
    served = [variant.scored.preprocessor for variant in variants]
    assert served == ["served", "none", "served", "none", "served"]


@pytest.mark.parametrize(
    ("masker", "preprocessor", "same"),
    [
        (None, None, [("whole", "masker_only", "preprocessor_only", "bare")]),
        (MASKER, None, [("whole", "masker_only"), ("preprocessor_only", "bare")]),
        (None, SQUEEZE, [("whole", "preprocessor_only"), ("masker_only", "bare")]),
    ],
    ids=["bare", "masker", "preprocessor"],
)
def test_equal_variants_compare_equal(masker, preprocessor, same):
    variants = make_variants(DefendedModel(CLASSIFIER, masker, preprocessor))
    for names in same:
        assert len({getattr(variants, name) for name in names}) == 1
    assert variants.has_masker == (masker is not None)
    assert variants.has_preprocessor == (preprocessor is not None)
    assert (variants.other_surrogate is None) == (preprocessor is None)


SWITCHED_MODEL_SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).random((3, *SWITCHED_MODEL_SHAPE), dtype=np.float32)


def _model(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(SWITCHED_MODEL_SHAPE), *layers])


SWITCHED_MODEL_CLASSIFIER = _model(keras.layers.Flatten(), keras.layers.Dense(3))
SWITCHED_MODEL_MASKER = _model(keras.layers.Conv2D(1, 1, activation="sigmoid"))
SWITCHED_MODEL_SQUEEZE = parse_preprocessor("bit_depth_2", "smooth")


def _with_gradient(model, images):
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = model(images, training=False)
        total = tf.reduce_sum(logits[:, 0])
    return logits.numpy(), tape.gradient(total, images).numpy()


def test_switches_take_parts_away_without_compiling_anew():
    switched, traces = (
        SwitchedModel(
            DefendedModel(SWITCHED_MODEL_CLASSIFIER, SWITCHED_MODEL_MASKER, SWITCHED_MODEL_SQUEEZE)
        ),
        [],
    )

    @tf.function
    def compiled(images):
        traces.append(1)
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = switched.model(images, training=False)
            total = tf.reduce_sum(logits[:, 0])
        return logits, tape.gradient(total, images)

    broken = parse_preprocessor("bit_depth_3")
    for setup, masker, preprocessor in (
        (Setup(True, "served"), SWITCHED_MODEL_MASKER, SWITCHED_MODEL_SQUEEZE),
        (Setup(True, "attacker"), SWITCHED_MODEL_MASKER, SWITCHED_MODEL_SQUEEZE),
        (
            Setup(True, "other_surrogate"),
            SWITCHED_MODEL_MASKER,
            SWITCHED_MODEL_SQUEEZE.with_surrogate("identity"),
        ),
        (Setup(True, "none"), SWITCHED_MODEL_MASKER, None),
        (Setup(False, "served"), None, SWITCHED_MODEL_SQUEEZE),
        (Setup(False, "none"), None, None),
        (Setup(False, "broken"), None, broken),
    ):
        switched.switch(setup)
        expected = _with_gradient(
            DefendedModel(SWITCHED_MODEL_CLASSIFIER, masker, preprocessor), IMAGES
        )
        for found, values in zip(compiled(tf.constant(IMAGES)), expected, strict=True):
            np.testing.assert_allclose(found, values, atol=1e-6, err_msg=str(setup))
    assert len(traces) == 1


def test_logits_are_multiplied():
    switched = SwitchedModel(DefendedModel(SWITCHED_MODEL_CLASSIFIER))
    expected = np.asarray(SWITCHED_MODEL_CLASSIFIER(IMAGES))
    for factor in (3.0, 0.5, 1.0):
        switched.switch(Setup(False, "none", factor))
        np.testing.assert_allclose(switched.model(IMAGES), factor * expected, rtol=1e-6)


def test_it_starts_as_it_is_served():
    subject = DefendedModel(
        SWITCHED_MODEL_CLASSIFIER, SWITCHED_MODEL_MASKER, SWITCHED_MODEL_SQUEEZE
    )
    np.testing.assert_array_equal(SwitchedModel(subject).model(IMAGES), subject(IMAGES))


def test_the_attacker_has_other_draws():
    def draw(images, seeds):
        number = tf.map_fn(
            lambda seed: tf.random.stateless_uniform((), seed),
            seeds,
            fn_output_signature=tf.float32,
        )
        return tf.zeros_like(images) + number[:, None, None, None]

    operation = Operation(draw, lambda images, seeds: images, (), is_random=True)
    random = Preprocessor("draw", "identity", steps=((operation, ()),))
    subject = DefendedModel(SWITCHED_MODEL_CLASSIFIER, None, random)
    switched = SwitchedModel(subject)
    for name, model in (("served", subject), ("attacker", subject.for_attacker())):
        switched.switch(Setup(False, name))
        np.testing.assert_allclose(switched.model(IMAGES), model(IMAGES), atol=1e-6)
    assert np.abs(np.asarray(subject(IMAGES) - subject.for_attacker()(IMAGES))).max() > 1e-3
