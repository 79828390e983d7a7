import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import SquareAttack as ArtSquareAttack
from scipy.special import log_softmax
from sklearn.datasets import load_digits

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.projected_gradient import ProjectedGradientDescent
from sfm_tf.attacks.square import SquareAttack, square_sides
from sfm_tf.errors import SfmError

SHAPE = (8, 8, 1)


class Linear(keras.Model):
    """Logits linear in the pixels, of which the first is raised by `lead`."""

    def __init__(self, shape, lead=0.0):
        super().__init__()
        self.kernel = np.random.default_rng(0).normal(size=(math.prod(shape), 2)).astype(np.float32)
        self.bias = np.array([lead, 0.0], np.float32)
        self.calls = 0

    def call(self, images):
        self.calls += 1
        return tf.reshape(images, (-1, len(self.kernel))) @ self.kernel + self.bias


class Masked(keras.Model):
    """The same predictions with logits so far apart that the cross-entropy has no gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, images):
        return 1024.0 * self.model(images)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return (images / 16).reshape(-1, *SHAPE).astype(np.float32), labels


@pytest.fixture(scope="module")
def trained_model(digits):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(SHAPE),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(digits[0][200:], digits[1][200:], batch_size=64, epochs=6, verbose=0)
    return model


def _attack(model, class_count=10, shape=SHAPE, **options):
    classifier = wrap_classifier(model, class_count, shape, 100)
    return SquareAttack(classifier, **{"epsilon": 0.1, "queries": 200, "batch_size": 100} | options)


def _gray_samples(shape, count=20):
    return np.random.default_rng(1).uniform(0.3, 0.7, (count, *shape)).astype(np.float32)


def _wrong(model, images, labels):
    return np.asarray(model(images)).argmax(axis=1) != labels


@pytest.mark.parametrize("shape", [(4, 4, 1), (3, 5, 2)])
def test_finds_the_worst_perturbation_of_a_linear_model(shape):
    """Of one that it cannot fool, so that the search goes on; the best is at a corner."""
    model = Linear(shape, lead=100.0)
    images, labels = _gray_samples(shape), np.zeros(20, int)
    slope = (model.kernel[:, 1] - model.kernel[:, 0]).reshape(shape)
    outcome = _attack(model, 2, shape, queries=2000).run(images, labels)
    np.testing.assert_allclose(outcome.images, images + 0.1 * np.sign(slope), atol=1e-6)


def test_is_as_strong_as_art(trained_model, digits):
    images, labels = digits[0][:100], digits[1][:100]
    attack = _attack(trained_model, queries=300)
    reference = ArtSquareAttack(
        attack.estimator, eps=0.1, max_iter=300, batch_size=100, verbose=False
    )
    np.random.seed(0)
    expected = np.mean(~_wrong(trained_model, reference.generate(images, labels), labels))
    accuracy = np.mean(~_wrong(trained_model, attack.generate(images, labels), labels))
    assert 0.3 < expected < 0.8
    assert accuracy == pytest.approx(expected, abs=0.08)


def test_masked_gradients_do_not_matter_to_it(trained_model, digits):
    """1024 is a power of two, so that not even a rounding differs."""
    images, labels = digits[0][:100], digits[1][:100]
    masked = Masked(trained_model)
    attack = _attack(masked, epsilon=0.15)
    blinded = ProjectedGradientDescent(
        attack.estimator, epsilon=0.15, step_size=0.04, iterations=20
    ).generate(images, labels)
    clean_errors = _wrong(masked, images, labels).mean()
    assert _wrong(masked, blinded, labels).mean() < clean_errors + 0.1
    moved = attack.generate(images, labels)
    assert _wrong(masked, moved, labels).mean() > clean_errors + 0.4
    unmasked = _attack(trained_model, epsilon=0.15)
    np.testing.assert_array_equal(unmasked.generate(images, labels), moved)


def test_needs_no_gradient():
    class Rounding(Linear):
        def call(self, images):
            return super().call(tf.round(8.0 * images) - 4.0)

    model = Rounding(SHAPE)
    images = _gray_samples(SHAPE, 100)
    labels = np.asarray(model(images)).argmax(axis=1)
    slope = (model.kernel[:, 1 - labels] - model.kernel[:, labels]).T.reshape(images.shape)
    possible = _wrong(model, images + 0.02 * np.sign(slope), labels)
    outcome = _attack(model, 2, epsilon=0.02, queries=1000).run(images, labels)
    found = _wrong(model, outcome.images, labels)
    assert 20 < possible.sum() < 100
    assert found.sum() >= 0.95 * possible.sum()
    assert not (found & ~possible).any()
    assert not outcome.zero_gradient.any()


@pytest.mark.parametrize("epsilon", [0.03, 0.4])
def test_stays_in_the_ball_and_its_diagnostics_hold(trained_model, digits, epsilon):
    images, labels = digits[0][:60], digits[1][:60]
    outcome = _attack(trained_model, epsilon=epsilon, queries=100).run(images, labels)
    assert np.abs(outcome.images - images).max() <= epsilon + 1e-6
    assert outcome.images.min() >= 0.0
    assert outcome.images.max() <= 1.0
    logits = np.asarray(trained_model(outcome.images), np.float64)
    expected = -log_softmax(logits, axis=1)[np.arange(60), labels]
    np.testing.assert_allclose(outcome.loss, expected, rtol=1e-3, atol=1e-5)
    assert outcome.iterations.min() >= 0
    assert outcome.iterations.max() <= 100


def test_every_changed_pixel_is_at_an_end_of_its_range(trained_model, digits):
    images, labels = digits[0][:60], digits[1][:60]
    moved = _attack(trained_model, queries=50).generate(images, labels)
    ends = np.stack([np.clip(images - 0.1, 0, 1), np.clip(images + 0.1, 0, 1)])
    attacked = ~_wrong(trained_model, images, labels)
    assert np.abs(moved - ends).min(axis=0)[attacked].max() < 1e-6


def test_the_first_query_is_of_vertical_stripes(trained_model):
    images = _gray_samples((8, 8, 3))
    outcome = _attack(Linear((8, 8, 3), lead=100.0), 2, (8, 8, 3), queries=1).run(
        images, np.zeros(20, int)
    )
    change = outcome.images - images
    np.testing.assert_allclose(np.abs(change), 0.1, atol=1e-6)
    np.testing.assert_allclose(change, np.broadcast_to(change[:, :1], change.shape), atol=1e-6)
    positive = np.mean(change[:, 0] > 0)
    # 480 fair coins: five standard deviations.
    assert abs(positive - 0.5) < 0.12
    assert outcome.iterations.tolist() == [1] * 20


def test_an_image_misclassified_to_begin_with_is_left_alone(trained_model, digits):
    images, labels = digits[0][:60], digits[1][:60]
    wrong = _wrong(trained_model, images, labels)
    assert wrong.any()
    outcome = _attack(trained_model).run(images, labels)
    np.testing.assert_array_equal(outcome.images[wrong], images[wrong])
    assert outcome.iterations[wrong].tolist() == [0] * wrong.sum()


def test_an_image_stops_changing_once_it_fools(trained_model, digits):
    """Alone its search ends at once; among others, which go on, it must come out the same."""
    images, labels = digits[0][:60], digits[1][:60]
    attack = _attack(trained_model, queries=100)
    together = attack.run(images, labels)
    fooled = _wrong(trained_model, together.images, labels)
    assert 10 < fooled.sum() < 60
    assert together.iterations[fooled].min() < 10
    attack.set_params(batch_size=1)
    alone = attack.run(images, labels)
    np.testing.assert_array_equal(alone.iterations[fooled], together.iterations[fooled])
    np.testing.assert_allclose(alone.images[fooled], together.images[fooled], atol=1e-6)
    # A square that hardly changes the margin may be kept or not by its rounding.
    other = np.abs(alone.images - together.images).max(axis=(1, 2, 3))
    assert np.mean(other < 1e-5) > 0.9


def test_squares_and_stripes_follow_the_seed(trained_model, digits):
    images, labels = digits[0][:20], digits[1][:20]
    attack = _attack(trained_model, queries=20)
    first = attack.generate(images, labels)
    np.testing.assert_array_equal(attack.generate(images, labels), first)
    attack.set_params(seed=1)
    assert np.abs(attack.generate(images, labels) - first).max() > 0.1


def test_a_mask_keeps_pixels_as_they_are(trained_model, digits):
    images, labels = digits[0][:20], digits[1][:20]
    mask = np.zeros((1, *SHAPE))
    mask[:, :4] = 1
    moved = _attack(trained_model).generate(images, labels, mask=mask)
    np.testing.assert_array_equal(moved[:, 4:], images[:, 4:])
    assert np.abs(moved[:, :4] - images[:, :4]).max() > 0.09


def test_another_radius_does_not_compile_anew():
    model = Linear(SHAPE)
    images = _gray_samples(SHAPE)
    attack = _attack(model, 2)
    attack.generate(images, np.zeros(20, int))
    calls = model.calls
    for options in ({"epsilon": 0.2}, {"p_init": 0.5}, {"seed": 3}):
        attack.set_params(**options)
        attack.generate(images, np.zeros(20, int))
    assert model.calls == calls


def test_squares_shrink_as_in_the_authors_code():
    """At 32 by 32 and 0.8: sqrt(0.8 * 1024 / 2^k), after 10, 50, 200, ... of 10 000 queries."""
    sides = square_sides(10_000, 0.8, 32, 32).tolist()
    expected = {0: 0, 1: 29, 11: 29, 12: 20, 51: 20, 52: 14, 201: 14, 202: 10, 501: 10, 502: 7}
    expected |= {1001: 7, 1002: 5, 2001: 5, 2002: 4, 4002: 3, 6002: 2, 8001: 2, 8002: 1, 9999: 1}
    assert {query: sides[query] for query in expected} == expected


def test_the_schedule_is_stretched_to_the_queries():
    assert square_sides(101, 0.8, 32, 32)[1:6].tolist() == [29, 14, 14, 10, 10]
    assert square_sides(1, 0.8, 32, 32).tolist() == [0]


def test_squares_fit_into_the_image():
    assert square_sides(100, 1.0, 4, 9).max() == 4


def test_takes_exactly_its_own_options():
    attack = _attack(Linear(SHAPE), 2)
    expected = {"norm", "epsilon", "queries", "p_init", "batch_size", "seed"}
    assert set(attack.attack_params) == expected
    assert attack.targeted is False


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("norm", 2, "'inf' or math.inf"),
        ("queries", 0, "an integer of at least 1"),
        ("p_init", 0.0, "a number above 0"),
        ("p_init", 1.1, "a number above 0, at most 1"),
    ],
)
def test_bad_options_are_refused(option, value, expected):
    message = f"Invalid {option} {value!r} of SquareAttack; expected {expected}"
    with pytest.raises(SfmError, match=message):
        _attack(Linear(SHAPE), 2, **{option: value})


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
