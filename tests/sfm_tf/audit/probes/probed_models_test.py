import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.audit.probes.probed_models import SwitchedModel, Switches, make_ablations
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.draws import RepeatableFreshDraws
from sfm_tf.preprocessors.operation import Operation

SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)


def _model(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(SHAPE), *layers])


CLASSIFIER = _model(keras.layers.Flatten(), keras.layers.Dense(3))
MASKER = _model(keras.layers.Conv2D(1, 1, activation="sigmoid"))
SQUEEZE = parse_preprocessor("bit_depth_2", "smooth")


def test_each_ablation_lacks_its_part():
    ablations = make_ablations(DefendedModel(CLASSIFIER, MASKER, SQUEEZE))
    assert [ablation.attacked for ablation in ablations] == [
        Switches(True, "attacker"),
        Switches(True, "none"),
        Switches(False, "attacker"),
        Switches(False, "none"),
        Switches(True, "other_surrogate"),
    ]
    served = [ablation.scored.preprocessor for ablation in ablations]
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
def test_equal_ablations_compare_equal(masker, preprocessor, same):
    ablations = make_ablations(DefendedModel(CLASSIFIER, masker, preprocessor))
    for names in same:
        assert len({getattr(ablations, name) for name in names}) == 1
    assert ablations.has_masker == (masker is not None)
    assert ablations.has_preprocessor == (preprocessor is not None)
    assert (ablations.other_surrogate is None) == (preprocessor is None)


def _with_gradient(model, images):
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = model(images, training=False)
        total = tf.reduce_sum(logits[:, 0])
    return logits.numpy(), tape.gradient(total, images).numpy()


def test_switches_take_parts_away_without_compiling_anew():
    switched, traces = (
        SwitchedModel(DefendedModel(CLASSIFIER, MASKER, SQUEEZE)),
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
    for switches, masker, preprocessor in (
        (Switches(True, "served"), MASKER, SQUEEZE),
        (Switches(True, "attacker"), MASKER, SQUEEZE),
        (
            Switches(True, "other_surrogate"),
            MASKER,
            SQUEEZE.with_surrogate("identity"),
        ),
        (Switches(True, "none"), MASKER, None),
        (Switches(False, "served"), None, SQUEEZE),
        (Switches(False, "none"), None, None),
        (Switches(False, "broken"), None, broken),
    ):
        switched.switch(switches)
        expected = _with_gradient(DefendedModel(CLASSIFIER, masker, preprocessor), IMAGES)
        for found, values in zip(compiled(tf.constant(IMAGES)), expected, strict=True):
            np.testing.assert_allclose(found, values, atol=1e-6, err_msg=str(switches))
    assert len(traces) == 1


def test_logits_are_multiplied():
    switched = SwitchedModel(DefendedModel(CLASSIFIER))
    expected = np.asarray(CLASSIFIER(IMAGES))
    for factor in (3.0, 0.5, 1.0):
        switched.switch(Switches(False, "none", factor))
        np.testing.assert_allclose(switched.model(IMAGES), factor * expected, rtol=1e-6)


def test_it_starts_as_it_is_served():
    subject = DefendedModel(CLASSIFIER, MASKER, SQUEEZE)
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
    random = Preprocessor("draw", "identity", RepeatableFreshDraws(), ((operation, ()),))
    subject = DefendedModel(CLASSIFIER, None, random)
    switched = SwitchedModel(subject)
    for name, model in (("served", subject), ("attacker", subject.for_attacker())):
        switched.switch(Switches(False, name))
        np.testing.assert_allclose(switched.model(IMAGES), model(IMAGES), atol=1e-6)
    assert np.abs(np.asarray(subject(IMAGES) - subject.for_attacker()(IMAGES))).max() > 1e-3
