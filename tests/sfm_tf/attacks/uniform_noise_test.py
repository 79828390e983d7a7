import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.attacks.uniform_noise import UniformNoise
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import wrap_classifier

SHAPE = (8, 8, 1)


class Linear(keras.Model):
    """Two logits of fixed weights; counts its Python runs."""

    def __init__(self, size=64):
        super().__init__()
        self.kernel = np.random.default_rng(0).normal(size=(size, 2)).astype(np.float32)
        self.calls = 0

    def call(self, images):
        self.calls += 1
        return tf.reshape(images, (-1, len(self.kernel))) @ self.kernel


def _samples(count=40, low=0.3, high=0.7, shape=SHAPE):
    random = np.random.default_rng(1)
    images = random.uniform(low, high, (count, *shape)).astype(np.float32)
    return images, random.integers(0, 2, count)


def _attack(model=None, shape=SHAPE, **options):
    classifier = wrap_classifier(model or Linear(), 2, shape, 64)
    return UniformNoise(classifier, **{"epsilon": 0.1, "batch_size": 16, **options})


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return (images / 16).reshape(-1, *SHAPE).astype(np.float32), labels


@pytest.fixture(scope="module")
def trained_model(digits):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(SHAPE),
        keras.layers.Flatten(),
        keras.layers.Dense(32, "relu"),
        keras.layers.Dense(10),
    ]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(digits[0][200:], digits[1][200:], batch_size=64, epochs=6, verbose=0)
    return model


@pytest.mark.parametrize("points", ["uniform", "extreme"])
@pytest.mark.parametrize(("norm", "epsilon"), [(math.inf, 0.2), ("inf", 0.6), (2, 3.0)])
def test_never_leaves_the_ball_nor_the_range_of_pixels(norm, epsilon, points):
    images, labels = _samples(low=0.0, high=1.0)
    attack = _attack(norm=norm, epsilon=epsilon, points=points, draws=5)
    moved = attack.generate(images, labels)
    change = (moved.astype(np.float64) - images).reshape(40, -1)
    sizes = np.linalg.norm(change, ord=float(norm), axis=1)
    assert sizes.max() <= epsilon + 1e-6
    assert sizes.min() > epsilon / 2
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_extreme_points_of_the_cube_move_every_pixel_by_all_of_the_radius():
    images, labels = _samples()
    change = _attack(points="extreme", draws=3).generate(images, labels) - images
    np.testing.assert_allclose(np.abs(change), 0.1, atol=1e-6)
    assert np.mean(change > 0) == pytest.approx(0.5, abs=0.05)


def test_extreme_points_of_the_round_ball_are_its_sphere():
    images, labels = _samples()
    change = _attack(norm=2, points="extreme", draws=3).generate(images, labels) - images
    np.testing.assert_allclose(np.linalg.norm(change.reshape(40, -1), axis=1), 0.1, atol=1e-6)


def test_uniform_points_fill_the_cube():
    images, labels = _samples()
    change = _attack(draws=1).generate(images, labels) - images
    quartiles = np.quantile(change, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [-0.05, 0.0, 0.05], atol=0.01)


def test_keeps_the_worst_corner_of_all():
    """Of four corners, 60 draws miss the worst with a probability of 3e-8 per image."""
    shape = (2, 1, 1)
    images, labels = _samples(count=50, shape=shape)
    model = Linear(size=2)
    slope = (model.kernel[:, 1 - labels] - model.kernel[:, labels]).T.reshape(images.shape)
    attack = _attack(model, shape, points="extreme", draws=60)
    outcome = attack.run(images, labels)
    np.testing.assert_allclose(outcome.images, images + 0.1 * np.sign(slope), atol=1e-6)
    # The first of equal draws is kept: its number is geometric with a share of 1/4.
    assert outcome.iterations.min() >= 1
    assert 2.2 < outcome.iterations.mean() < 6.5
    attack.set_params(targeted=True)
    away = attack.generate(images, labels)
    np.testing.assert_allclose(away, images - 0.1 * np.sign(slope), atol=1e-6)


def test_diagnostics_belong_to_the_images_that_come_back():
    images, labels = _samples()
    model = Linear()
    for targeted in (False, True):
        outcome = _attack(model, draws=20, targeted=targeted).run(images, labels)
        logits = np.asarray(model(outcome.images), np.float64)
        margins = logits[np.arange(40), 1 - labels] - logits[np.arange(40), labels]
        np.testing.assert_allclose(outcome.loss, np.logaddexp(0, margins), atol=1e-5)
        assert outcome.iterations.min() >= 1
        assert outcome.iterations.max() <= 20
        assert len(set(outcome.iterations.tolist())) > 5
        assert outcome.zero_gradient_share == 0.0


def test_more_draws_are_never_less_damaging():
    images, labels = _samples()
    attack, losses = _attack(), []
    for draws in (1, 4, 16, 64):
        attack.set_params(draws=draws)
        losses.append(attack.run(images, labels).loss)
    # Of two classes, the higher loss is the one that fools.
    assert (np.diff(losses, axis=0) >= 0).all()
    assert (losses[-1] > losses[0]).mean() > 0.9


def test_is_weaker_than_gradient_descent_on_a_trained_model(trained_model, digits):
    images, labels = digits[0][:200], digits[1][:200]
    classifier = wrap_classifier(trained_model, 10, SHAPE, 200)
    accuracies = {"clean": np.mean(np.asarray(trained_model(images)).argmax(axis=1) == labels)}
    attacks = {
        "uniform": UniformNoise(classifier, epsilon=0.15, draws=50),
        "extreme": UniformNoise(classifier, epsilon=0.15, draws=50, points="extreme"),
        "gradient": ProjectedGradientDescent(
            classifier, epsilon=0.15, step_size=0.03, iterations=15, keep_best=True
        ),
    }
    losses = {}
    for name, attack in attacks.items():
        outcome = attack.run(images, labels)
        losses[name] = outcome.loss
        predictions = np.asarray(trained_model(outcome.images)).argmax(axis=1)
        accuracies[name] = np.mean(predictions == labels)
    assert accuracies["clean"] > accuracies["uniform"] >= accuracies["extreme"]
    assert accuracies["extreme"] > accuracies["gradient"] + 0.3
    assert (losses["gradient"] > losses["extreme"]).mean() > 0.98
    assert (losses["extreme"] > losses["uniform"]).mean() > 0.7


def test_a_mask_keeps_pixels_as_they_are():
    images, labels = _samples()
    mask = np.zeros((1, *SHAPE))
    mask[:, 0] = 1
    moved = _attack(draws=3).generate(images, labels, mask=mask)
    np.testing.assert_array_equal(moved[:, 1:], images[:, 1:])
    assert np.abs(moved[:, 0] - images[:, 0]).min(axis=(1, 2)).max() > 0


@pytest.mark.parametrize("norm", [math.inf, 2])
def test_images_do_not_depend_on_the_batch_size(norm):
    images, labels = _samples(37)
    outcomes = [
        _attack(norm=norm, draws=10, batch_size=batch_size).generate(images, labels)
        for batch_size in (7, 16, 37)
    ]
    np.testing.assert_allclose(outcomes[1], outcomes[0], atol=1e-6)
    np.testing.assert_allclose(outcomes[2], outcomes[0], atol=1e-6)


@functools.cache
def _linear_attack(shape, norm, points, targeted):
    model = Linear(math.prod(shape))
    return _attack(model, shape, norm=norm, points=points, targeted=targeted, batch_size=4)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    # Each compiles once.
    setting=st.sampled_from(
        [
            ((1, 1, 1), math.inf, "uniform", False),
            ((2, 9, 3), 2, "extreme", True),
            ((9, 4, 1), math.inf, "extreme", True),
            ((3, 3, 3), 2, "uniform", False),
        ]
    ),
    epsilon=st.floats(0.001, 2.0),
    draws=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
)
def test_results_are_valid_repeatable_and_no_worse_after_more_draws(setting, epsilon, draws, seed):
    shape, norm, _, targeted = setting
    attack, random = _linear_attack(*setting), np.random.default_rng(seed)
    images = random.uniform(-0.2, 1.2, (4, *shape)).clip(0, 1).astype(np.float32)
    mask = random.integers(0, 2, images.shape)
    labels = random.integers(0, 2, 4)
    losses = []
    for count in (draws, draws + 3):
        attack.set_params(epsilon=epsilon, draws=count, seed=seed)
        outcome = attack.run(images, labels, mask)
        moved = outcome.images
        np.testing.assert_array_equal(attack.run(images, labels, mask).images, moved)
        sizes = np.linalg.norm((moved - images).reshape(4, -1), ord=norm, axis=1)
        assert sizes.max() <= epsilon + (1e-6 if norm == math.inf else 1e-5)
        assert moved.min() >= 0
        assert moved.max() <= 1
        np.testing.assert_array_equal(moved[mask == 0], images[mask == 0])
        # Of two classes, the higher loss is the one that fools.
        losses.append(-outcome.loss if targeted else outcome.loss)
    assert (losses[1] >= losses[0]).all()


def test_draws_follow_the_seed_and_differ_between_images():
    images, labels = _samples()
    attack = _attack(draws=1)
    first = attack.generate(images, labels)
    np.testing.assert_array_equal(attack.generate(images, labels), first)
    attack.set_params(seed=3)
    assert np.abs(attack.generate(images, labels) - first).max() > 0.05
    changes = (first - images).reshape(40, -1)
    assert np.abs(np.corrcoef(changes) - np.eye(40)).max() < 0.7


def test_other_numbers_do_not_compile_anew():
    model, (images, labels) = Linear(), _samples()
    attack = _attack(model, draws=3)
    attack.generate(images, labels)
    calls = model.calls
    attack.set_params(draws=9, epsilon=0.2)
    outcome = attack.run(images, labels)
    assert model.calls == calls
    assert np.abs(outcome.images - images).max() > 0.15
    assert outcome.iterations.max() > 3


def test_takes_exactly_its_own_options():
    expected = {"norm", "epsilon", "targeted", "batch_size", "seed", "draws", "points"}
    assert set(_attack().attack_params) == expected
    assert _attack().draws == 100


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("draws", 0, "an integer of at least 1"),
        ("points", "gaussian", "one of uniform, extreme"),
        ("epsilon", 0, "a finite number above 0"),
    ],
)
def test_bad_options_are_refused(option, value, expected):
    message = f"Invalid {option} {value!r} of UniformNoise; expected {expected}"
    with pytest.raises(SfmError, match=message):
        _attack(**{option: value})
