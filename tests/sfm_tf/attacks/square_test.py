import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import SquareAttack as ArtSquareAttack

from sfm_tf.attacks.attack import AttackBatch
from sfm_tf.attacks.square import PROPOSALS, SquareAttack, make_bump, square_sides
from sfm_tf.models.art_classifier import wrap_classifier
from tests.attacked_models import (
    DIGIT_SHAPE,
    Masked,
    advance_all,
    digit_model,
    digits,
    predictions,
)

SHAPE = (9, 11, 3)
COUNT = 6


def _batch(low=0.3, high=0.7, shape=SHAPE, mask=None):
    images = np.random.default_rng(0).uniform(low, high, (COUNT, *shape)).astype(np.float32)
    mask = np.ones_like(images) if mask is None else np.broadcast_to(mask, images.shape)
    seeds = np.stack([np.full(COUNT, 7), np.arange(COUNT)], axis=1).astype(np.int32)
    arrays = (images, np.zeros(COUNT, np.int64), mask.astype(np.float32), seeds)
    return AttackBatch(*map(tf.constant, arrays))


def _numbers(norm, shape=SHAPE):
    count = PROPOSALS[norm].number_count + shape[2]
    return np.random.default_rng(1).random((COUNT, count)).astype(np.float32)


def _perturbed(batch, norm, epsilon):
    change = np.random.default_rng(2).normal(size=batch.images.shape)
    sizes = np.linalg.norm(change.reshape(COUNT, -1), ord=norm, axis=1)
    scale = epsilon * np.linspace(0.5, 1.0, COUNT) / sizes
    change = (change * scale[:, None, None, None]).astype(np.float32)
    return tf.clip_by_value(batch.images + change, 0.0, 1.0)


def _propose(norm, side, best, batch, epsilon, numbers=None):
    numbers = _numbers(norm, batch.images.shape[1:]) if numbers is None else numbers
    return (
        PROPOSALS[norm]
        .propose(tf.constant(numbers), tf.constant(side), best, batch, tf.constant(epsilon))
        .numpy()
    )


def _norms(change):
    return np.linalg.norm(np.reshape(change, (COUNT, -1)).astype(np.float64), axis=1)


def _hill(rows, columns):
    """Andriushchenko et al. 2020, section 3.4, pixel by pixel with the paper's names."""
    n = max(rows // 2, columns // 2)
    hill = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            distance = max(abs(i - rows // 2), abs(j - columns // 2))
            hill[i, j] = sum(1 / (n + 1 - k) ** 2 for k in range(n - distance + 1))
    return hill / np.linalg.norm(hill)


def _bump(side):
    bump = np.concatenate([_hill(side // 2, side), -_hill(side - side // 2, side)])
    return bump / np.linalg.norm(bump)


@pytest.mark.parametrize("side", [2, 3, 5, 7])
def test_a_bump_is_the_two_hills_of_the_paper(side):
    expected = np.zeros((8, 8))
    expected[:side, :side] = _bump(side)
    np.testing.assert_allclose(make_bump(tf.constant(side), 8), expected, atol=1e-6)


def test_the_smallest_bump_is_one_pixel():
    np.testing.assert_array_equal(make_bump(tf.constant(1), 2), [[-1, 0], [0, 0]])


def _moved_by_the_book(image, best, numbers, side, epsilon):
    """Algorithm 3 of Andriushchenko et al. 2020 for one image, channel by channel."""
    height, width, channels = image.shape
    r1, c1, r2, c2 = (
        int(number * (size - side + 1))
        for number, size in zip(numbers, (height, width, height, width), strict=False)
    )
    nu = best - image
    in_first, in_second = np.zeros((height, width), bool), np.zeros((height, width), bool)
    in_first[r1 : r1 + side, c1 : c1 + side] = True
    in_second[r2 : r2 + side, c2 : c2 + side] = True
    unused = max(epsilon**2 - np.sum(nu**2), 0.0) / channels
    eta = _bump(side) if numbers[4] < 0.5 else _bump(side).T
    result = nu.copy()
    result[in_second] = 0.0
    for channel in range(channels):
        sign = -1.0 if numbers[5 + channel] < 0.5 else 1.0
        old = nu[r1 : r1 + side, c1 : c1 + side, channel]
        new = sign * eta + old / np.linalg.norm(old)
        available = np.sqrt(np.sum(nu[in_first | in_second, channel] ** 2) + unused)
        window = available * new / np.linalg.norm(new)
        result[r1 : r1 + side, c1 : c1 + side, channel] = window
    return np.clip(image + epsilon * result / np.linalg.norm(result), 0.0, 1.0)


@pytest.mark.parametrize("side", [3, 5, 9])
def test_an_l2_proposal_moves_the_norm_as_the_paper_says(side):
    batch = _batch()
    best = _perturbed(batch, 2, 1.5)
    moved = _propose(2, side, best, batch, 1.5)
    arguments = (batch.images.numpy().astype(np.float64), best.numpy().astype(np.float64))
    expected = [
        _moved_by_the_book(*values, side, 1.5)
        for values in zip(*arguments, _numbers(2), strict=True)
    ]
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_an_l_infinity_proposal_takes_a_square_to_the_ends_of_the_ball():
    batch = _batch()
    best = batch.images + 0.0625
    moved = _propose("inf", 4, best, batch, 0.0625)
    for image, numbers, before in zip(moved, _numbers("inf"), batch.images.numpy(), strict=True):
        row, column = int(numbers[0] * 6), int(numbers[1] * 8)
        expected = np.full(SHAPE, 0.0625)
        expected[row : row + 4, column : column + 4] *= np.where(numbers[2:] < 0.5, -1, 1)
        np.testing.assert_allclose(image - before, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (2, 4, 1), (5, 5, 2)])
@pytest.mark.parametrize("norm", [math.inf, 2])
def test_all_proposals_are_allowed_images(norm, shape):
    mask = np.random.default_rng(3).random((1, *shape)) < 0.7
    batch = _batch(0.0, 1.0, shape, mask)
    sides = PROPOSALS[norm].fit_sides(np.array([0, 1, 4, 100]), min(shape[:2]))
    assert 1 <= sides.min() <= sides.max() <= min(shape[:2])
    moved = [PROPOSALS[norm].initialize(batch, tf.constant(0.4)).numpy()]
    for side in sides.tolist():
        moved.append(_propose(norm, side, tf.constant(moved[-1]), batch, 0.4))
    for images in moved:
        assert images.min() >= 0.0
        assert images.max() <= 1.0
        change = images - batch.images.numpy()
        assert np.all(change[~np.broadcast_to(mask, change.shape)] == 0.0)
        sizes = np.linalg.norm(change.reshape(COUNT, -1), ord=norm, axis=1)
        assert sizes.max() <= 0.4 + 1e-6


@pytest.mark.parametrize(("edge", "tile", "tiles"), [(32, 6, 5), (28, 5, 5), (8, 1, 8)])
def test_the_first_l2_proposal_is_a_grid_of_bumps(edge, tile, tiles):
    """All bumps have one norm; at 32 and 28 pixels the authors' grid begins at pixel 1, too."""
    batch = _batch(shape=(edge, edge, 1))
    begun = PROPOSALS[2].initialize(batch, tf.constant(0.5)).numpy() - batch.images.numpy()
    first = (edge - tile * tiles) // 2
    inner = begun[:, first : first + tile * tiles, first : first + tile * tiles]
    bumps = inner.reshape(COUNT, tiles, tile, tiles, tile).transpose(0, 1, 3, 2, 4)
    np.testing.assert_allclose(np.linalg.norm(bumps, axis=(3, 4)), 0.5 / tiles, rtol=1e-4)
    np.testing.assert_allclose(_norms(begun), 0.5, rtol=1e-5)
    np.testing.assert_allclose(_norms(inner), 0.5, rtol=1e-5)
    expected = _bump(tile) if tile > 1 else np.array([[1.0]])
    shapes = [sign * side for sign in (1, -1) for side in (expected, expected.T)]
    distances = [np.abs(bumps * tiles / 0.5 - shape).max(axis=(3, 4)) for shape in shapes]
    assert np.min(distances, axis=0).max() < 1e-4
    kinds = np.argmin(distances, axis=0)
    assert len(np.unique(kinds)) == (4 if tile > 1 else 2)
    assert (kinds[0] != kinds[1]).any()


def test_windows_for_bumps_have_odd_sides_of_at_least_three():
    """As in the authors' code, which has no image of fewer than five pixels."""
    fit = PROPOSALS[2].fit_sides
    assert fit(np.array([0, 1, 3, 4, 5, 28, 29, 40]), 32).tolist() == [3, 3, 3, 5, 5, 29, 29, 31]


def test_windows_reach_every_place():
    batch = _batch(shape=(5, 5, 1))
    reached = np.zeros((5, 5), bool)
    for number in (0.0, 1.0 - 2.0**-23):
        numbers = np.full((COUNT, 3), number, np.float32)
        moved = _propose("inf", 3, batch.images, batch, 0.1, numbers)
        reached |= np.abs(moved - batch.images.numpy())[0, ..., 0] > 0.05
    assert reached[0, 0]
    assert reached[4, 4]


class Linear(keras.Model):
    """Logits linear in the pixels, of which the first is raised by `lead`."""

    def __init__(self, shape, lead=0.0, class_count=2):
        super().__init__()
        size = (math.prod(shape), class_count)
        self.kernel = np.random.default_rng(0).normal(size=size).astype(np.float32)
        self.bias = lead * np.eye(class_count, dtype=np.float32)[0]
        self.calls = 0

    def call(self, images):
        self.calls += 1
        return tf.reshape(images, (-1, len(self.kernel))) @ self.kernel + self.bias


class Counting(keras.Model):
    """Integer weights, exact for images of few bits in any batch; counts the images it sees."""

    def __init__(self, class_count=4):
        super().__init__()
        self.kernel = np.random.default_rng(4).integers(-8, 9, (64, class_count)).astype(np.float32)
        self.rows = tf.Variable(0)

    def call(self, images):
        self.rows.assign_add(tf.shape(images)[0])
        return tf.reshape(images, (-1, 64)) @ self.kernel


# Of so large a batch the smallest bucket holds all images: an attack compiles once.
def _attack(model, class_count=10, shape=DIGIT_SHAPE, **options):
    classifier = wrap_classifier(model, class_count, shape, 100)
    return SquareAttack(classifier, **{"epsilon": 0.1, "queries": 200, "batch_size": 480} | options)


def _gray_samples(shape, count=20):
    return np.random.default_rng(1).uniform(0.3, 0.7, (count, *shape)).astype(np.float32)


def _wrong(model, images, labels):
    return predictions(model, images) != labels


@pytest.mark.parametrize("shape", [(4, 4, 1), (3, 5, 2)])
def test_finds_the_worst_perturbation_of_a_linear_model(shape):
    """Of one that it cannot fool, so that the search goes on; the best is at a corner."""
    model = Linear(shape, lead=100.0)
    images, labels = _gray_samples(shape), np.zeros(20, int)
    slope = (model.kernel[:, 1] - model.kernel[:, 0]).reshape(shape)
    outcome = _attack(model, 2, shape, queries=1000).run(images, labels)
    np.testing.assert_allclose(outcome.images, images + 0.1 * np.sign(slope), atol=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:art")
@pytest.mark.parametrize(("norm", "epsilon"), [(math.inf, 0.12), (2, 1.6)])
def test_is_as_strong_as_art(norm, epsilon):
    """At twice the size: ART's bumps are not a number where an image has fewer than 10 pixels.

    In L2 some of its later proposals are not numbers either, and it falls behind.
    """
    layers = [keras.Input((16, 16, 1)), keras.layers.AveragePooling2D(2), digit_model()]
    model, (images, labels) = keras.Sequential(layers), (array[:40] for array in digits())
    images = images.repeat(2, axis=1).repeat(2, axis=2)
    options = {"norm": norm, "epsilon": epsilon, "queries": 150}
    attack = _attack(model, shape=(16, 16, 1), **options)
    reference = ArtSquareAttack(
        attack.estimator, norm=norm, eps=epsilon, max_iter=150, batch_size=40, verbose=False
    )
    np.random.seed(0)
    expected = np.mean(~_wrong(model, reference.generate(images, labels), labels))
    accuracy = np.mean(~_wrong(model, attack.generate(images, labels), labels))
    assert 0.3 < expected < 0.8
    assert expected - 0.3 < accuracy < expected + 0.15


def test_comes_close_to_the_worst_perturbation_in_the_l2_ball():
    """Of a linear model, it is along the slope; it lowers the margin by its norm times epsilon."""
    model, images = Linear(DIGIT_SHAPE, lead=100.0), _gray_samples(DIGIT_SHAPE)
    slope = model.kernel[:, 0] - model.kernel[:, 1]
    outcome = _attack(model, 2, norm=2, epsilon=0.2, queries=1000).run(images, np.zeros(20, int))
    drop = (images - outcome.images).reshape(20, -1) @ slope / (0.2 * np.linalg.norm(slope))
    assert drop.max() <= 1.0 + 1e-5
    assert drop.min() > 0.6


def test_the_scale_of_the_logits_does_not_matter_to_it():
    """1024 is a power of two, so that not even a rounding differs."""
    images, labels = (array[:50] for array in digits())
    options = {"epsilon": 0.15, "queries": 100}
    moved = _attack(digit_model(), **options).generate(images, labels)
    masked = _attack(Masked(digit_model()), **options).generate(images, labels)
    np.testing.assert_array_equal(masked, moved)


def test_needs_no_gradient():
    class Rounding(Linear):
        def call(self, images):
            return super().call(tf.round(8.0 * images) - 4.0)

    model = Rounding(DIGIT_SHAPE)
    images = _gray_samples(DIGIT_SHAPE, 60)
    labels = predictions(model, images)
    slope = (model.kernel[:, 1 - labels] - model.kernel[:, labels]).T.reshape(images.shape)
    possible = _wrong(model, images + 0.02 * np.sign(slope), labels)
    outcome = _attack(model, 2, epsilon=0.02, queries=600).run(images, labels)
    found = _wrong(model, outcome.images, labels)
    assert 10 < possible.sum() < 60
    assert found.sum() >= 0.9 * possible.sum()
    assert not (found & ~possible).any()
    assert not outcome.zero_gradient.any()


def test_every_changed_pixel_is_at_an_end_and_misclassified_images_are_left_alone():
    images, labels = (array[:60] for array in digits())
    outcome = _attack(digit_model(), queries=50).run(images, labels)
    ends = np.stack([np.clip(images - 0.1, 0, 1), np.clip(images + 0.1, 0, 1)])
    wrong = _wrong(digit_model(), images, labels)
    assert wrong.any()
    assert np.abs(outcome.images - ends).min(axis=0)[~wrong].max() < 1e-6
    np.testing.assert_array_equal(outcome.images[wrong], images[wrong])
    assert outcome.iterations[wrong].tolist() == [0] * wrong.sum()


def test_the_first_query_is_of_vertical_stripes():
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


def _exact_samples(model, count=64):
    images = np.random.default_rng(5).integers(8, 57, (count, *DIGIT_SHAPE)).astype(np.float32) / 64
    return images, predictions(model, images)


@pytest.mark.parametrize(("norm", "epsilon"), [("inf", 3 / 64), (2, 0.375)])
def test_fooled_images_leave_the_batch_and_nothing_else_changes(monkeypatch, norm, epsilon):
    model = Counting()
    images, labels = _exact_samples(model)
    attack = _attack(model, 4, norm=norm, epsilon=epsilon, queries=600, batch_size=64)
    outcome, rows = attack.run(images, labels), int(model.rows)
    standing = np.sum(~_wrong(model, outcome.images, labels))
    assert 1 <= standing <= 32
    monkeypatch.setattr("sfm_tf.attacks.square.advance_unfinished", advance_all)
    model.rows.assign(0)
    whole = attack.run(images, labels)
    assert int(model.rows) > 64 * 600
    assert rows < 0.7 * int(model.rows)
    np.testing.assert_allclose(outcome.images, whole.images, atol=1e-6)
    np.testing.assert_array_equal(outcome.iterations, whole.iterations)


def test_squares_shrink_as_in_the_authors_code():
    """At 32 by 32 and 0.8: sqrt(0.8 * 1024 / 2^k), after 10, 50, 200, ... of 10 000 queries."""
    sides = square_sides(10_000, 0.8, 32, 32, 10_000).tolist()
    expected = {0: 0, 1: 29, 11: 29, 12: 20, 51: 20, 52: 14, 201: 14, 202: 10, 501: 10, 502: 7}
    expected |= {1001: 7, 1002: 5, 2001: 5, 2002: 4, 4002: 3, 6002: 2, 8001: 2, 8002: 1, 9999: 1}
    assert {query: sides[query] for query in expected} == expected


def test_the_schedule_is_stretched_to_the_queries_or_that_of_more_queries():
    assert square_sides(101, 0.8, 32, 32, 101)[1:6].tolist() == [29, 14, 14, 10, 10]
    assert square_sides(1, 0.8, 32, 32, 1).tolist() == [0]
    long = square_sides(10_000, 0.8, 32, 32, 10_000)
    np.testing.assert_array_equal(square_sides(500, 0.8, 32, 32, 10_000), long[:500])
