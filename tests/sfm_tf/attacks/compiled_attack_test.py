import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.attack import EvasionAttack
from art.defences.preprocessor import FeatureSqueezing
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.compiled_attack import (
    NOT_FOUND,
    AttackOutcome,
    BatchOutcome,
    CompiledAttack,
    join_outcomes,
)
from sfm_tf.errors import SfmError

SHAPE = (2, 2, 1)
OPTIONS = {"norm": "inf", "epsilon": 0.1, "targeted": False, "batch_size": 4, "seed": 5}


class Shift(CompiledAttack):
    """Adds `epsilon` times `reach`; reports what it was given through the diagnostics."""

    reach = 1.0

    def _attack_batch(self, batch):
        self.shapes = [*getattr(self, "shapes", []), batch.images.shape[0]]
        self.seeds = batch.seeds.numpy()
        moved = batch.images + self.reach * self.epsilon * batch.mask
        loss = tf.cast(batch.labels, tf.float32)
        return BatchOutcome(moved, loss, batch.seeds[:, 1], batch.labels == 0)


class BrokenLoss(Shift):
    def _attack_batch(self, batch):
        loss = tf.where(batch.seeds[:, 1] == 12, float("nan"), 1.0)
        return super()._attack_batch(batch)._replace(loss=loss)


def _classifier(activation=None, clip_values=(0.0, 1.0), **options):
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3, activation)]
    model = keras.Sequential(layers)
    return TensorFlowV2Classifier(model, 3, SHAPE, clip_values=clip_values, **options)


def _outcome_at(batch, value):
    zeros = tf.zeros_like(batch.labels, tf.float32)
    return BatchOutcome(tf.fill(tf.shape(batch.images), value), zeros, zeros, zeros > 0.0)


def _images(count):
    return np.random.default_rng(0).uniform(0.2, 0.8, (count, *SHAPE)).astype(np.float32)


def test_is_an_evasion_attack_of_art():
    attack = Shift(_classifier(), **OPTIONS)
    assert isinstance(attack, EvasionAttack)
    assert "epsilon=0.1" in repr(attack)
    assert attack.targeted is False


def test_every_batch_has_one_size_and_only_true_images_come_back():
    attack = Shift(_classifier(), **OPTIONS)
    outcome = attack.run(_images(10), np.arange(10) % 3)
    assert attack.shapes == [4, 4, 4]
    np.testing.assert_allclose(outcome.images, _images(10) + 0.1, atol=1e-6)
    assert outcome.loss.tolist() == [index % 3 for index in range(10)]
    assert outcome.iterations.tolist() == list(range(10))
    assert outcome.zero_gradient_share == 0.4


@pytest.mark.parametrize(("count", "size"), [(3, 4), (2, 2), (1, 1)])
def test_fewer_images_than_a_batch_are_one_batch_of_the_smallest_bucket(count, size):
    attack = Shift(_classifier(), **OPTIONS)
    assert attack.generate(_images(count), np.zeros(count, int)).shape == (count, *SHAPE)
    assert attack.shapes == [size]


def test_batches_come_one_by_one_and_make_up_the_whole():
    attack, labels = Shift(_classifier(), **OPTIONS), np.arange(10) % 3
    outcomes = list(attack.batches(_images(10), labels))
    assert [len(outcome.images) for outcome in outcomes] == [4, 4, 2]
    whole = Shift(_classifier(), **OPTIONS).run(_images(10), labels)
    for field in dataclasses.fields(AttackOutcome):
        joined = getattr(join_outcomes(outcomes), field.name)
        np.testing.assert_array_equal(joined, getattr(whole, field.name))


def test_images_with_their_positions_have_the_seeds_they_have_in_the_whole():
    attack = Shift(_classifier(), **OPTIONS)
    attack.run(_images(3), np.zeros(3, int), positions=np.array([6, 2, 9]))
    assert attack.seeds.tolist() == [[5, 6], [5, 2], [5, 9], [5, 9]]


def test_each_image_has_the_seed_of_the_attack_and_its_position():
    attack = Shift(_classifier(), **OPTIONS)
    attack.run(_images(8), np.zeros(8, int))
    assert attack.seeds.tolist() == [[5, 4], [5, 5], [5, 6], [5, 7]]


def test_one_hot_and_index_labels_are_the_same():
    attack, labels = Shift(_classifier(), **OPTIONS), np.array([2, 0, 1])
    one_hot = attack.run(_images(3), np.eye(3)[labels])
    assert one_hot.loss.tolist() == attack.run(_images(3), labels).loss.tolist() == [2, 0, 1]


def test_without_labels_the_predictions_are_attacked():
    classifier, images = _classifier(), _images(10)
    outcome = Shift(classifier, **OPTIONS).run(images)
    assert outcome.loss.tolist() == classifier.model(images).numpy().argmax(axis=1).tolist()


def test_a_targeted_attack_needs_labels():
    with pytest.raises(SfmError, match="A targeted attack needs labels"):
        Shift(_classifier(), **{**OPTIONS, "targeted": True}).generate(_images(2))


def test_mask_reaches_the_attack_per_image():
    mask = np.zeros((10, *SHAPE), np.float32)
    mask[7, 1] = 1
    moved = Shift(_classifier(), **OPTIONS).generate(_images(10), np.zeros(10, int), mask=mask)
    np.testing.assert_allclose(moved - _images(10), 0.1 * mask, atol=1e-6)


def test_options_change_by_name():
    attack = Shift(_classifier(), **OPTIONS)
    attack.set_params(epsilon=0.2, targeted=True)
    assert (attack.epsilon, attack.targeted) == (0.2, True)


def test_options_change_all_or_none():
    attack = Shift(_classifier(), **OPTIONS)
    with pytest.raises(SfmError, match="Unknown option 'eps' of Shift; expected one of norm, eps"):
        attack.set_params(epsilon=0.2, eps=0.2)
    with pytest.raises(SfmError, match="Invalid batch_size 0 of Shift"):
        attack.set_params(epsilon=0.2, batch_size=0)
    assert attack.epsilon == 0.1


def test_an_attack_that_breaks_its_limits_is_found_out():
    attack = Shift(_classifier(), **OPTIONS)
    attack.reach = 1.01
    with pytest.raises(
        RuntimeError, match=r"Shift\(.*made invalid images: a perturbation has norm"
    ):
        attack.generate(_images(2), np.zeros(2, int))


def test_a_loss_that_is_not_a_number_is_reported():
    attack = BrokenLoss(_classifier(), **OPTIONS)
    with pytest.raises(
        SfmError, match="NaN or infinite for 1 of 4 attacked images, first image 12"
    ):
        attack.run(_images(6), np.zeros(6, int), positions=np.arange(10, 16))


def test_probabilities_are_refused_before_any_work():
    attack = Shift(_classifier(activation="softmax"), **OPTIONS)
    with pytest.raises(SfmError, match="probabilities; expected logits"):
        attack.generate(_images(2), np.zeros(2, int))
    assert not hasattr(attack, "shapes")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((2, *SHAPE), 1.5), [0, 0], r"expected \[0, 1\]"),
        (np.full((2, *SHAPE), np.nan), [0, 0], "NaN"),
        (np.zeros((2, *SHAPE)), [0, 3], "expected 0 to 2"),
        (np.zeros((2, *SHAPE)), [0], "expected \\(2,\\)"),
    ],
)
def test_bad_images_and_labels_are_refused(images, labels, message):
    with pytest.raises(SfmError, match=message):
        Shift(_classifier(), **OPTIONS).generate(images, np.array(labels))


@pytest.mark.parametrize("clip_values", [None, (0, 255)])
def test_another_range_of_images_is_refused(clip_values):
    with pytest.raises(SfmError, match="clip_values"):
        Shift(_classifier(clip_values=clip_values), **OPTIONS)


def test_a_preprocessor_outside_tensorflow_is_refused():
    squeezing = FeatureSqueezing(clip_values=(0, 1), bit_depth=4)
    with pytest.raises(SfmError, match="PreprocessorTensorFlowV2"):
        Shift(_classifier(preprocessing_defences=squeezing), **OPTIONS)


def test_share_of_zero_gradients():
    flags = np.array([True, False, False, True])
    assert AttackOutcome(flags, flags, flags, flags).zero_gradient_share == 0.5


def test_an_image_is_found_unless_marked():
    iterations = np.array([0, NOT_FOUND, 7])
    outcome = AttackOutcome(iterations, iterations, iterations, iterations)
    assert outcome.found.tolist() == [True, False, True]


def test_without_a_radius_only_the_range_limits_the_images():
    attack = Shift(_classifier(), **OPTIONS)
    attack.epsilon = math.inf
    attack._attack_batch = lambda batch: _outcome_at(batch, 1.0)
    np.testing.assert_array_equal(attack.generate(_images(2), np.zeros(2, int)), 1.0)
    attack._attack_batch = lambda batch: _outcome_at(batch, 1.01)
    with pytest.raises(RuntimeError, match=r"to 1.0099\d* instead of within \[0, 1\]"):
        attack.generate(_images(2), np.zeros(2, int))


def test_takes_the_batched_classifier():
    model = _classifier().model
    outcome = Shift(wrap_classifier(model, 3, SHAPE, 2), **OPTIONS).run(_images(5))
    assert outcome.images.shape == (5, *SHAPE)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
