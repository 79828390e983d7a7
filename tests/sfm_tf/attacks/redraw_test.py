import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.attacks.redraw import Redraw
from sfm_tf.attacks.square import SquareAttack
from sfm_tf.models.art_classifier import wrap_classifier
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.preprocessors.draws import KeyedDraws
from tests.attacked_models import DIGIT_SHAPE, digit_model, digits, norms, predictions, samples

NOISE = 0.26 / 255


class Coin(keras.Model):
    """Class 1 for one of four images, as the last bits of a pixel have it; class 0 else."""

    def call(self, images: tf.Tensor) -> tf.Tensor:
        bits = tf.bitcast(images[:, 0, 0, 0], tf.int32)
        is_one = tf.cast(tf.math.floormod(bits, 4) == 0, tf.float32)
        # Confidence that rises with another pixel, so that losses differ.
        return tf.stack([images[:, 1, 1, 0], 3.0 * is_one], axis=1)


def _images(count=200):
    images, _ = samples(2, 0.2, 0.8, count)
    return images, np.zeros(count, int)


def _attack(model, classes=2, **options):
    classifier = wrap_classifier(model, classes, DIGIT_SHAPE, 64)
    return Redraw(classifier, **{"epsilon": 0.1, "batch_size": 50, **options})


def test_the_first_redraw_that_fools_is_kept():
    images, labels = _images()
    outcome = _attack(Coin()).run(images, labels)
    fooled = predictions(Coin(), outcome.images) == 1
    # Thirty throws at one in four miss with a probability of 2e-4 per image.
    assert fooled.mean() > 0.98
    # The start is throw 0, and the number of the first success is geometric.
    numbers = outcome.iterations[fooled]
    assert np.mean(numbers == 0) == pytest.approx(0.25, abs=0.1)
    assert numbers.mean() == pytest.approx(3.0, abs=0.8)
    fewer = _attack(Coin(), draws=3).run(images, labels)
    early = outcome.iterations <= 3
    np.testing.assert_array_equal(fewer.images[early & fooled], outcome.images[early & fooled])


@pytest.mark.parametrize("norm", [math.inf, 2])
def test_starts_at_the_ball_s_border_and_ends_inside_it_and_the_range(norm):
    images, labels = samples(2, 0.0, 1.0, 40)
    starts = np.clip(images + np.random.default_rng(3).choice([-0.1, 0.1], images.shape), 0, 1)
    change = starts - images
    starts = images + change * np.minimum(1, 0.1 / norms(change, norm))[:, None, None, None]
    (outcome,) = _attack(Coin(), norm=norm, batch_size=40).batches(
        images, np.zeros(40, int), starts=starts.astype(np.float32)
    )
    assert outcome.images.min() >= 0.0
    assert outcome.images.max() <= 1.0
    assert norms(outcome.images - images, norm).max() <= 0.1 + 1e-5
    if norm == math.inf:
        assert 0 < np.abs(outcome.images - starts).max() <= NOISE + 1e-6


def test_where_none_fools_the_highest_loss_is_kept_and_the_start_is_one_of_them():
    model, (images, labels) = digit_model(), (array[:50] for array in digits())
    images = images[predictions(model, images) == labels]
    labels = predictions(model, images)
    one, thirty = (_attack(model, 10, draws=draws).run(images, labels) for draws in (1, 30))
    assert (predictions(model, thirty.images) == labels).mean() > 0.9
    assert (thirty.loss >= one.loss).all()
    assert set(one.iterations) == {0, 1}


def test_each_image_starts_where_it_is_told_to_in_any_batch():
    images, labels = _images(23)
    starts = np.clip(images + 0.05, 0, 1)
    together = [
        outcome.images
        for outcome in _attack(Coin(), batch_size=8).batches(images, labels, starts=starts)
    ]
    some = np.array([20, 3, 11])
    (apart,) = _attack(Coin(), batch_size=8).batches(
        images[some], labels[some], positions=some, starts=starts[some]
    )
    np.testing.assert_array_equal(np.concatenate(together)[some], apart.images)


def test_a_defence_that_draws_from_the_image_is_broken_by_gradients_queries_and_noise():
    """Total variation minimisation holds only against who meets other draws than are served."""
    images, labels = (array[:40] for array in digits())
    served = DefendedModel(
        digit_model(), None, parse_preprocessor("total_variation_50_30")
    ).with_draws(KeyedDraws(bytes(range(16))))
    classifier = wrap_classifier(served, 10, DIGIT_SHAPE, 40)
    other = served.with_draws(KeyedDraws(bytes(16)))
    options = {"epsilon": 24 / 255, "batch_size": 40}
    steps = {"step_size": 4 / 255, "iterations": 10, "keep_best": True}
    blind = ProjectedGradientDescent(
        wrap_classifier(other, 10, DIGIT_SHAPE, 40), **options, **steps
    ).generate(images, labels)

    def right(moved):
        return np.mean(predictions(served, moved) == labels)

    (redrawn,) = Redraw(classifier, **options).batches(images, labels, starts=blind)
    found = {
        "clean": right(images),
        "other draws": right(blind),
        "gradients": right(
            ProjectedGradientDescent(classifier, **options, **steps).generate(images, labels)
        ),
        "noise": right(redrawn.images),
        "queries": right(SquareAttack(classifier, **options, queries=100).generate(images, labels)),
    }
    assert found["clean"] > 0.5
    assert found["other draws"] > 0.2
    assert max(found["gradients"], found["noise"], found["queries"]) <= 0.05, found
