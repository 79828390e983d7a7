import numpy as np
import pytest

from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.attacks.uniform_noise import UniformNoise
from sfm_tf.models.art_classifier import wrap_classifier
from tests.attacked_models import (
    DIGIT_SHAPE,
    Linear,
    accuracy,
    cross_entropy,
    digit_model,
    digits,
    samples,
)


def _samples(count=40, shape=DIGIT_SHAPE):
    return samples(2, 0.3, 0.7, count, shape)


def _attack(model=None, shape=DIGIT_SHAPE, **options):
    classifier = wrap_classifier(model or Linear(2), 2, shape, 64)
    return UniformNoise(classifier, **{"epsilon": 0.1, "batch_size": 16, **options})


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
    model = Linear(2, 2)
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
    model = Linear(2)
    for targeted in (False, True):
        outcome = _attack(model, draws=20, targeted=targeted).run(images, labels)
        losses = cross_entropy(model, outcome.images, labels)
        np.testing.assert_allclose(outcome.loss, losses, atol=1e-5)
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


def test_is_weaker_than_gradient_descent_on_a_model():
    model, (images, labels) = digit_model(), (array[:200] for array in digits())
    classifier = wrap_classifier(model, 10, DIGIT_SHAPE, 200)
    accuracies = {"clean": accuracy(model, images, labels)}
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
        accuracies[name] = accuracy(model, outcome.images, labels)
    assert accuracies["clean"] > accuracies["uniform"] >= accuracies["extreme"]
    assert accuracies["extreme"] > accuracies["gradient"] + 0.3
    assert (losses["gradient"] > losses["extreme"]).mean() > 0.98
    assert (losses["extreme"] > losses["uniform"]).mean() > 0.7
