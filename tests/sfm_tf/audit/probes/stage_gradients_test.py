import keras
import numpy as np
import pytest
from scipy.special import softmax

from sfm_tf.audit.probes.stage_gradients import (
    STAGES,
    gradient_health,
    logit_blindness,
    stage_gradients,
)
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.operation import Operation

SHAPE = (2, 2, 1)
COUNT = 5
IMAGES = np.random.default_rng(0).uniform(0.2, 0.8, (COUNT, *SHAPE)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, COUNT)
KERNEL = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)


def _classifier(scale=1.0):
    dense = keras.layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
    dense.set_weights([scale * KERNEL])
    return model


class Doubler(keras.Model):
    """A mask of twice the pixel's value: the gradient takes two ways to the image."""

    def call(self, images):
        return 2.0 * images


def _samples():
    return check_samples(IMAGES, LABELS, _classifier())


def _health(model):
    health = gradient_health(model, _samples(), batch_size=2)
    assert [entry.stage for entry in health.stages] == list(STAGES)
    return {entry.stage: entry for entry in health.stages}, health.losses


def test_gradients_of_each_stage_are_those_by_hand():
    model = DefendedModel(_classifier(), Doubler())
    found = stage_gradients(model, _samples(), "stable_cross_entropy", batch_size=2)
    images = IMAGES.reshape(COUNT, 4).astype(np.float64)
    logits = (2.0 * images * images) @ KERNEL
    error = softmax(logits, axis=1) - np.eye(3)[LABELS]
    seen = error @ KERNEL.T
    expected = {
        "logits": error,
        "classifier_input": seen,
        "masked_image": seen,
        "mask": seen * images,
        "image": seen * 4.0 * images,
    }
    for stage, values in expected.items():
        np.testing.assert_allclose(found[stage], values, rtol=1e-4, atol=1e-6)
    stages, _ = _health(model)
    for stage, values in expected.items():
        norm = np.median(np.linalg.norm(values, axis=1))
        assert stages[stage].median_norm == pytest.approx(norm, rel=1e-4)
        assert (stages[stage].connected, stages[stage].zero_share) == (True, 0.0)


def test_without_a_masker_the_mask_has_a_gradient_all_the_same():
    stages, _ = _health(DefendedModel(_classifier()))
    assert stages["mask"].median_norm > 0.0


def test_the_surrogate_decides_what_passes_the_preprocessing():
    blocking = Operation(lambda images: images, lambda images: 0.0 * images, ())
    blocked = Preprocessor("blocking", "smooth", steps=((blocking, ()),))
    stages, losses = _health(DefendedModel(_classifier(), None, blocked))
    assert stages["classifier_input"].zero_share == 0.0
    for stage in ("masked_image", "mask", "image"):
        assert (stages[stage].zero_share, stages[stage].median_norm) == (1.0, 0.0)
    assert losses["stable_cross_entropy"].zero_share == 1.0
    passed, _ = _health(DefendedModel(_classifier(), None, parse_preprocessor("bit_depth_3")))
    np.testing.assert_allclose(
        passed["masked_image"].median_norm, passed["classifier_input"].median_norm
    )


def test_gradients_that_are_not_numbers_are_counted():
    model = _classifier()
    model.layers[-1].set_weights([np.where(KERNEL > 1.0, np.inf, KERNEL)])
    stages, _ = _health(DefendedModel(model))
    assert stages["image"].not_finite_share == 1.0


class Rounder(keras.Model):
    """A mask that is no differentiable function of the image."""

    def call(self, images):
        return keras.ops.cast(keras.ops.cast(2.0 * images, "int32"), "float32")


def test_a_stage_that_the_loss_does_not_depend_on_is_told():
    class Constant(keras.Model):
        def call(self, images):
            return keras.ops.zeros((keras.ops.shape(images)[0], 3))

    stages, losses = _health(DefendedModel(Constant(), Rounder()))
    assert stages["logits"].connected
    assert not stages["image"].connected
    assert stages["image"].zero_share == losses["cross_entropy"].zero_share == 1.0


@pytest.mark.parametrize(
    ("margin", "plain", "stable"), [(5.0, 0.0, 0.0), (40.0, 1.0, 0.0), (500.0, 1.0, 1.0)]
)
def test_the_plain_loss_is_blind_from_a_smaller_margin_on(margin, plain, stable):
    logits, labels = np.array([[margin, 0.0, -1.0]]), np.array([0])
    assert logit_blindness(logits, labels, "cross_entropy") == plain
    assert logit_blindness(logits, labels, "stable_cross_entropy") == stable
