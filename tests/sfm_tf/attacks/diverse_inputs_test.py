import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import ProjectedGradientDescent as ArtProjectedGradientDescent
from scipy.special import softmax

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.momentum_iterative import MomentumIterativeMethod
from sfm_tf.errors import SfmError

SHAPE = (8, 8, 1)
SETTINGS = {"epsilon": 0.1, "step_size": 0.02, "iterations": 5}
ONE_STEP = {"epsilon": 0.1, "step_size": 0.1, "iterations": 1}

# Of 8 pixels the 7 whose centres are nearest to (i + 1/2) * 8/7, i from 0 to 6; 4 is exact there.
KEPT = [0, 1, 2, 4, 5, 6, 7]


class Linear(keras.Model):
    """Logits of fixed weights that are not confident; counts its Python runs."""

    def __init__(self, class_count=2):
        super().__init__()
        random = np.random.default_rng(0)
        self.kernel = random.normal(scale=0.05, size=(64, class_count)).astype(np.float32)
        self.calls = 0

    def call(self, images):
        self.calls += 1
        return tf.reshape(images, (-1, 64)) @ self.kernel


class Wavy(Linear):
    """Logits that rise and fall within an attack's reach."""

    def call(self, images):
        return super().call(tf.sin(25.0 * images))


def _samples(count=40, low=0.3, high=0.7, class_count=2):
    random = np.random.default_rng(1)
    images = random.uniform(low, high, (count, *SHAPE)).astype(np.float32)
    return images, random.integers(0, class_count, count)


def _attack(model=None, batch_size=16, **options):
    classifier = wrap_classifier(model or Linear(), 2, SHAPE, 64)
    return DiverseInputsMethod(classifier, batch_size=batch_size, **options)


def _gradients(kernel, images, labels):
    """The gradient of the loss at the plain image and at each of its four shrunk views."""
    embeddings = [np.eye(64)]
    for top, left in itertools.product((0, 1), (0, 1)):
        shown = np.zeros((8, 8, 8, 8))
        for row, column in itertools.product(range(7), range(7)):
            shown[row + top, column + left, KEPT[row], KEPT[column]] = 1
        embeddings.append(shown.reshape(64, 64))
    gradients = []
    for embedding in embeddings:
        error = softmax(images.reshape(-1, 64) @ embedding.T @ kernel, axis=1)
        error -= np.eye(kernel.shape[1])[labels]
        gradients.append((error @ kernel.T @ embedding).reshape(images.shape))
    return np.array(gradients)


def _which_view(moved, images, gradients):
    """Index of the view whose gradient each image was moved along; -1 for none or several."""
    expected = images + 0.1 * np.sign(gradients)
    matches = np.abs(moved - expected).max(axis=(2, 3, 4)) < 1e-5
    return np.where(matches.sum(axis=0) == 1, matches.argmax(axis=0), -1)


def test_steps_along_the_gradient_at_one_of_the_shrunk_views():
    images, labels = _samples(80)
    model = Linear()
    moved = _attack(model, probability=1.0, **ONE_STEP).generate(images, labels)
    views = _which_view(moved, images, _gradients(model.kernel, images, labels))
    counts = np.bincount(views + 1, minlength=6)
    assert counts[:2].tolist() == [0, 0]
    # Four places, each with a probability of 1/4: 20 of 80, with a deviation of 3.9.
    assert (counts[2:] >= 6).all()
    assert (counts[2:] <= 34).all()


@pytest.mark.parametrize("probability", [0.25, 0.75])
def test_views_are_shrunk_as_often_as_asked(probability):
    images, labels = _samples(400)
    model = Linear()
    attack = _attack(model, batch_size=400, probability=probability, **ONE_STEP)
    views = _which_view(
        attack.generate(images, labels), images, _gradients(model.kernel, images, labels)
    )
    assert (views >= 0).all()
    deviation = math.sqrt(probability * (1 - probability) / 400)
    assert np.mean(views > 0) == pytest.approx(probability, abs=4 * deviation)


def test_every_size_is_equally_likely_among_shrunk_views():
    """A step moves exactly the pixels that were shown, as many as the square of the size."""
    images, labels = _samples(400)
    attack = _attack(batch_size=400, probability=0.5, smallest_share=0.5, **ONE_STEP)
    moved = np.count_nonzero(attack.generate(images, labels) != images, axis=(1, 2, 3))
    sizes, counts = np.unique(moved, return_counts=True)
    assert sizes.tolist() == [16, 25, 36, 49, 64]
    # Shares of 1/8 with a deviation of 6.6, and of 1/2 with one of 10.
    np.testing.assert_allclose(counts, [50, 50, 50, 50, 200], atol=26)


def test_each_step_has_views_of_its_own():
    """Along a linear model a pixel that two views disagree on goes forth and back."""
    images, labels = _samples(80)
    model = Linear()
    gradients = np.sign(_gradients(model.kernel, images, labels))[1:]
    attack = _attack(model, probability=1.0, **{**ONE_STEP, "iterations": 2, "epsilon": 0.3})
    change = (attack.generate(images, labels) - images) / 0.1
    pairs = gradients[:, None] + gradients[None]
    matches = np.abs(change - pairs).max(axis=(3, 4, 5)) < 1e-4
    assert matches.any(axis=(0, 1)).all()
    same = matches[np.arange(4), np.arange(4)].any(axis=0)
    # One in four pairs of views is twice the same one.
    assert 5 <= same.sum() <= 38


def test_several_views_give_the_gradient_of_their_mean():
    images, labels = _samples(6)
    model = Linear()
    expected = _gradients(model.kernel, images, labels)[1:].mean(axis=0)
    cosines = {}
    for samples in (1, 600):
        attack = _attack(
            model, norm=2, probability=1.0, gradient_samples=samples, batch_size=6, **ONE_STEP
        )
        change = attack.generate(images, labels) - images
        products = (change * expected).reshape(6, -1).sum(axis=1)
        cosines[samples] = products / 0.1 / np.linalg.norm(expected.reshape(6, -1), axis=1)
    assert cosines[600].min() > 0.995
    assert cosines[1].max() < 0.9


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("norm", [math.inf, 2])
def test_unshrunk_finds_the_worst_perturbation_of_a_linear_model(norm, momentum):
    model, (images, labels) = Linear(), _samples()
    slope = (model.kernel[:, 1 - labels] - model.kernel[:, labels]).T.reshape(images.shape)
    lengths = np.linalg.norm(slope.reshape(40, -1), axis=1)[:, None, None, None]
    worst = {math.inf: np.sign(slope), 2: slope / lengths}[norm]
    attack = _attack(
        model,
        norm=norm,
        epsilon=0.2,
        step_size=0.03,
        iterations=9,
        probability=0.0,
        momentum=momentum,
    )
    np.testing.assert_allclose(attack.generate(images, labels), images + 0.2 * worst, atol=1e-6)


def test_unshrunk_and_without_momentum_makes_the_images_of_arts_pgd():
    classifier, (images, labels) = wrap_classifier(Wavy(), 2, SHAPE, 64), _samples()
    reference = ArtProjectedGradientDescent(
        classifier, eps=0.1, eps_step=0.02, max_iter=5, batch_size=16, verbose=False
    )
    attack = DiverseInputsMethod(classifier, probability=0, batch_size=16, **SETTINGS)
    expected = reference.generate(images, labels)
    np.testing.assert_allclose(attack.generate(images, labels), expected, atol=1e-5)


def test_unshrunk_with_momentum_is_the_momentum_iterative_method():
    classifier, (images, labels) = wrap_classifier(Wavy(), 2, SHAPE, 64), _samples()
    expected = MomentumIterativeMethod(classifier, momentum=0.8, **SETTINGS)
    attack = DiverseInputsMethod(classifier, momentum=0.8, probability=0.0, **SETTINGS)
    np.testing.assert_array_equal(
        attack.generate(images, labels), expected.generate(images, labels)
    )


def test_momentum_joins_the_views_of_all_steps():
    """After two steps the velocity is the sum of two views' gradients, each of norm 1."""
    images, labels = _samples(30)
    model = Linear()
    gradients = _gradients(model.kernel, images, labels)[1:]
    units = gradients / np.abs(gradients).sum(axis=(2, 3, 4), keepdims=True)
    steps = np.sign(units)[:, None] + np.sign(units[:, None] + units[None])
    attack = _attack(
        model, probability=1.0, momentum=1.0, **{**ONE_STEP, "iterations": 2, "epsilon": 0.3}
    )
    change = (attack.generate(images, labels) - images) / 0.1
    # The slope of the loss changes a little along the way, and with it the signs of sums near 0.
    wrong = np.abs(change - steps).mean(axis=(3, 4, 5))
    assert wrong.min(axis=(0, 1)).max() < 0.1


@pytest.mark.parametrize("gradient_samples", [1, 3])
def test_images_do_not_depend_on_the_batch_size(gradient_samples):
    images, labels = _samples(37)
    model, outcomes = Wavy(), []
    for batch_size in (7, 37):
        attack = _attack(
            model,
            batch_size,
            gradient_samples=gradient_samples,
            random_start=True,
            momentum=1.0,
            **SETTINGS,
        )
        outcomes.append(attack.generate(images, labels))
    np.testing.assert_allclose(outcomes[1], outcomes[0], atol=1e-6)


def test_views_follow_the_seed():
    images, labels = _samples()
    attack = _attack(Wavy(), **SETTINGS)
    first = attack.generate(images, labels)
    np.testing.assert_array_equal(attack.generate(images, labels), first)
    attack.set_params(seed=7)
    assert np.abs(attack.generate(images, labels) - first).max() > 0.01


def test_options_change_without_compiling_anew():
    model, (images, labels) = Wavy(), _samples()
    changed = _attack(model, **SETTINGS)
    first = changed.generate(images, labels)
    calls = model.calls
    for other in ({"probability": 1.0}, {"smallest_share": 0.5}, {"momentum": 1.0}):
        changed.set_params(**{"probability": 0.5, "smallest_share": 299 / 330, **other})
        moved = changed.generate(images, labels)
        assert model.calls == calls
        assert np.abs(moved - first).max() > 0.01
        made_so = _attack(Wavy(), **SETTINGS, **other)
        np.testing.assert_array_equal(moved, made_so.generate(images, labels))


def test_the_loss_is_that_of_the_images_and_not_of_their_views():
    images, labels = _samples()
    model = Wavy()
    outcome = _attack(model, probability=1.0, gradient_samples=2, **SETTINGS).run(images, labels)
    probabilities = softmax(np.asarray(model(outcome.images), np.float64), axis=1)
    expected = -np.log(probabilities[np.arange(40), labels])
    np.testing.assert_allclose(outcome.loss, expected, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_best_iterate_is_the_most_damaging_image_and_not_view(momentum):
    images, labels = _samples()
    model, losses, prefixes = Wavy(), [], []
    attack = _attack(model, batch_size=40, probability=1.0, momentum=momentum, **SETTINGS)
    for iterations in range(1, 6):
        attack.set_params(iterations=iterations)
        prefixes.append(attack.generate(images, labels))
        probabilities = softmax(np.asarray(model(prefixes[-1]), np.float64), axis=1)
        losses.append(-np.log(probabilities[np.arange(40), labels]))
    # Of two classes, the higher loss is the one that fools.
    best = np.argmax(losses, axis=0)
    assert (best < 4).mean() > 0.3
    attack.set_params(keep_best=True)
    outcome = attack.run(images, labels)
    improved = np.max(losses, axis=0) > outcome.loss - 1e-6
    assert outcome.iterations[improved].tolist() == (best + 1)[improved].tolist()
    expected = np.array(prefixes)[best, np.arange(40)]
    np.testing.assert_allclose(outcome.images[improved], expected[improved], atol=1e-6)
    np.testing.assert_array_equal(outcome.images[~improved], images[~improved])


def test_targeted_attacks_raise_the_probability_of_the_target():
    images, labels = _samples()
    model = Linear()
    moved = _attack(model, targeted=True, **SETTINGS).generate(images, labels)
    before, after = (softmax(np.asarray(model(x)), axis=1) for x in (images, moved))
    rows = np.arange(40)
    assert (after[rows, labels] > before[rows, labels]).all()


def test_images_of_other_than_square_shape():
    layers = [keras.Input((6, 9, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    classifier = wrap_classifier(keras.Sequential(layers), 2, (6, 9, 3), 8)
    images = np.random.default_rng(0).uniform(0.3, 0.7, (5, 6, 9, 3)).astype(np.float32)
    attack = DiverseInputsMethod(classifier, probability=1.0, **SETTINGS)
    moved = attack.generate(images, np.zeros(5, int))
    assert np.abs(moved - images).max() == pytest.approx(0.1, abs=1e-5)


def test_takes_exactly_its_own_options():
    attack = _attack(**SETTINGS)
    common = {"norm", "epsilon", "targeted", "batch_size", "seed", "random_start", "loss"}
    iterated = {"step_size", "iterations", "keep_best", "restarts", "stop_when_fooled"}
    own = {"gradient_samples", "momentum", "probability", "smallest_share"}
    assert set(attack.attack_params) == common | iterated | own
    assert (attack.momentum, attack.probability) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("probability", 1.1, "a number from 0 to 1"),
        ("probability", -0.1, "a number from 0 to 1"),
        ("probability", True, "a number from 0 to 1"),
        ("smallest_share", 1.0, "a number above 0 and below 1"),
        ("smallest_share", 0, "a number above 0 and below 1"),
        ("momentum", -1, "a finite number of at least 0"),
        ("gradient_samples", 0, "an integer of at least 1"),
    ],
)
def test_bad_options_are_refused(option, value, expected):
    message = f"Invalid {option} {value} of DiverseInputsMethod; expected {expected}"
    with pytest.raises(SfmError, match=message):
        _attack(**{**SETTINGS, option: value})


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
