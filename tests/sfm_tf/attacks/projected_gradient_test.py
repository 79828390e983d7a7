import math

import keras
import numpy as np
import pytest
from art.attacks.evasion import ProjectedGradientDescent as ArtProjectedGradientDescent
from sklearn.datasets import load_digits

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.fast_gradient import FastGradientMethod
from sfm_tf.attacks.projected_gradient import ProjectedGradientDescent
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor

SHAPE = (8, 8, 1)


def _convolutional_classifier():
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(SHAPE),
        keras.layers.Conv2D(6, 3, activation="relu"),
        keras.layers.Conv2D(6, 3, strides=2, activation="tanh"),
        keras.layers.Flatten(),
        keras.layers.Dense(5),
    ]
    return wrap_classifier(keras.Sequential(layers), 5, SHAPE, 16)


def _samples(class_count, low=0.0, high=1.0):
    random = np.random.default_rng(1)
    images = random.uniform(low, high, (20, *SHAPE)).astype(np.float32)
    return images, random.integers(0, class_count, 20)


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


def test_a_batch_attacked_in_two_lanes_is_that_attacked_whole(monkeypatch, trained_model, digits):
    classifier = wrap_classifier(trained_model, 10, SHAPE, 64)
    images, labels = digits[0][:64], digits[1][:64]
    options = {"epsilon": 0.1, "step_size": 0.02, "iterations": 5, "random_start": True}
    outcomes = []
    for lanes in (1, 2):
        monkeypatch.setattr(ProjectedGradientDescent, "_lanes", lanes)
        attack = ProjectedGradientDescent(classifier, **options, batch_size=64)
        outcomes.append(attack.run(images, labels))
    # A product of half the rows may add up in another order.
    np.testing.assert_allclose(outcomes[1].images, outcomes[0].images, atol=1e-6)
    np.testing.assert_allclose(outcomes[1].loss, outcomes[0].loss, rtol=1e-4)
    np.testing.assert_array_equal(outcomes[1].iterations, outcomes[0].iterations)


def _accuracy(model, images, labels):
    return np.mean(np.asarray(model(images)).argmax(axis=1) == labels)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "epsilon", "step_size"), [(math.inf, 0.05, 0.01), (2, 0.5, 0.1)])
def test_makes_the_images_that_art_makes(norm, epsilon, step_size, targeted):
    classifier, (images, labels) = _convolutional_classifier(), _samples(5)
    reference = ArtProjectedGradientDescent(
        classifier,
        norm=norm,
        eps=epsilon,
        eps_step=step_size,
        max_iter=10,
        targeted=targeted,
        batch_size=16,
        verbose=False,
    )
    attack = ProjectedGradientDescent(
        classifier,
        norm=norm,
        epsilon=epsilon,
        step_size=step_size,
        iterations=10,
        targeted=targeted,
        batch_size=16,
    )
    expected = reference.generate(images, labels)
    assert np.abs(expected - images).max() > 0.04
    np.testing.assert_allclose(attack.generate(images, labels), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "targeted", "random_start", "keep_best"),
    [
        (math.inf, False, False, False),
        (math.inf, False, True, True),
        (math.inf, True, True, False),
        (2, False, False, True),
        (2, True, False, False),
    ],
)
def test_finds_the_worst_perturbation_of_a_linear_model(norm, targeted, random_start, keep_best):
    kernel = np.random.default_rng(0).normal(scale=0.2, size=(64, 2)).astype(np.float32)
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False)]
    model = keras.Sequential(layers)
    model.set_weights([kernel])
    images, labels = _samples(2, 0.3, 0.7)
    slope = (kernel[:, 1 - labels] - kernel[:, labels]).T.reshape(images.shape)
    slope = -slope if targeted else slope
    lengths = np.linalg.norm(slope.reshape(20, -1), axis=1)[:, None, None, None]
    worst = {math.inf: np.sign(slope), 2: slope / lengths}[norm]
    attack = ProjectedGradientDescent(
        wrap_classifier(model, 2, SHAPE, 16),
        norm=norm,
        epsilon=0.2,
        step_size=0.05,
        iterations=9,
        targeted=targeted,
        random_start=random_start,
        keep_best=keep_best,
    )
    np.testing.assert_allclose(attack.generate(images, labels), images + 0.2 * worst, atol=1e-6)


def test_accuracy_falls_as_the_radius_grows(trained_model, digits):
    images, labels = digits[0][:200], digits[1][:200]
    classifier = wrap_classifier(trained_model, 10, SHAPE, 100)
    attack = ProjectedGradientDescent(classifier, epsilon=0.1, step_size=0.02, iterations=30)
    accuracies = [_accuracy(trained_model, images, labels)]
    for epsilon in (0.03, 0.06, 0.12, 0.24, 0.48):
        attack.set_params(epsilon=epsilon)
        accuracies.append(_accuracy(trained_model, attack.generate(images, labels), labels))
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.85
    assert accuracies[-1] == 0.0


def test_many_small_steps_fool_no_less_than_one_large_step(trained_model, digits):
    images, labels = digits[0][:200], digits[1][:200]
    classifier = wrap_classifier(trained_model, 10, SHAPE, 100)
    one = FastGradientMethod(classifier, epsilon=0.1).generate(images, labels)
    many = ProjectedGradientDescent(
        classifier, epsilon=0.1, step_size=0.02, iterations=20, keep_best=True
    ).generate(images, labels)
    assert _accuracy(trained_model, many, labels) <= _accuracy(trained_model, one, labels)


@pytest.mark.parametrize("surrogate", ["identity", "smooth"])
def test_a_defence_by_bit_depth_alone_falls(trained_model, digits, surrogate):
    """A defence known to be broken validates the attack (Athalye et al. 2018)."""
    images, labels = digits[0][:100], digits[1][:100]
    preprocessor = parse_preprocessor("bit_depth_4", surrogate)
    defended = DefendedModel(trained_model, None, preprocessor)
    assert _accuracy(defended, images, labels) > 0.85
    attack = ProjectedGradientDescent(
        wrap_classifier(defended, 10, SHAPE, 100),
        epsilon=0.25,
        step_size=0.03,
        iterations=30,
        random_start=True,
        keep_best=True,
    )
    assert _accuracy(defended, attack.generate(images, labels), labels) < 0.02


def test_takes_exactly_its_own_options():
    attack = ProjectedGradientDescent(
        _convolutional_classifier(), epsilon=0.1, step_size=0.1, iterations=1
    )
    expected = {"norm", "epsilon", "targeted", "batch_size", "seed", "random_start", "loss"}
    own = {"step_size", "iterations", "keep_best", "restarts", "stop_when_fooled"}
    assert set(attack.attack_params) == expected | own | {"gradient_samples"}
    assert (attack.restarts, attack.keep_best, attack.stop_when_fooled) == (1, False, False)


@pytest.mark.parametrize(
    ("option", "value"), [("step_size", 0), ("iterations", 0), ("keep_best", 1), ("norm", 1)]
)
def test_bad_options_are_refused(option, value):
    options = {"epsilon": 0.1, "step_size": 0.1, "iterations": 1, option: value}
    with pytest.raises(SfmError, match=f"Invalid {option} {value} of ProjectedGradientDescent"):
        ProjectedGradientDescent(_convolutional_classifier(), **options)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
