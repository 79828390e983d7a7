import functools
import itertools
import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod, random_placements, shrink_and_pad
from sfm_tf.attacks.mim import MomentumIterativeMethod
from sfm_tf.models.art_classifier import wrap_classifier
from tests.attacked_models import DIGIT_SHAPE, Linear, Wavy, cross_entropy, samples

PAPER_SHARE = tf.constant(299 / 330)


def _images(count, height, width, channels=3):
    # No value is 0, so that padding can be told from pixels.
    shape = (count, height, width, channels)
    return np.random.default_rng(0).uniform(0.1, 1.0, shape).astype(np.float32)


def _nearest(index, size, full):
    """The pixel whose centre is nearest to that of pixel `index` of `size`, or the later of two."""
    centre = (index + Fraction(1, 2)) * Fraction(full, size)
    return min(range(full), key=lambda pixel: (abs(pixel + Fraction(1, 2) - centre), -pixel))


def _by_enumeration(image, size, offset):
    padded = np.zeros_like(image)
    rows, columns = (
        [_nearest(i, part, full) for i in range(part)]
        for part, full in zip(size.tolist(), image.shape[:2], strict=True)
    )
    region = np.s_[offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]
    padded[region] = image[np.ix_(rows, columns)]
    return padded


def _by_opencv(image, size, offset):
    padded = np.zeros_like(image)
    region = np.s_[offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]
    shape = (size[1].item(), size[0].item())
    padded[region] = cv2.resize(image, shape, interpolation=cv2.INTER_NEAREST_EXACT)
    return padded


def _placements(full_size):
    """Every size along either axis, with the first and the last place and one between."""
    for size in itertools.product(*(range(1, full + 1) for full in full_size)):
        rest = [full - part for full, part in zip(full_size, size, strict=True)]
        yield from {(size, (0, 0)), (size, tuple(rest)), (size, (rest[0] // 2, 0))}


def _check_all(images, placements, reference):
    sizes, offsets = (np.array(part, np.int32) for part in zip(*placements, strict=True))
    shown = shrink_and_pad(tf.constant(images), tf.constant(sizes), tf.constant(offsets))
    expected = [reference(*case) for case in zip(images, sizes, offsets, strict=True)]
    np.testing.assert_array_equal(shown, np.array(expected))


@pytest.mark.parametrize("full_size", [(8, 8), (5, 7), (12, 3)])
def test_shows_the_nearest_pixels_at_every_size(full_size):
    placements = list(_placements(full_size))
    _check_all(_images(len(placements), *full_size), placements, _by_enumeration)


@pytest.mark.parametrize("full_size", [(5, 7), (9, 3)])
def test_shows_what_opencv_shows(full_size):
    """At odd sizes no two pixels are equally near; of two, OpenCV may take the earlier."""
    placements = list(_placements(full_size))
    _check_all(_images(len(placements), *full_size), placements, _by_opencv)


@pytest.mark.parametrize(("full", "smallest"), [(32, 29), (64, 58)])
def test_shows_the_nearest_pixels_at_the_sizes_of_the_datasets(full, smallest):
    sizes = range(smallest, full)
    placements = [((size, size), (full - size, (full - size) // 2)) for size in sizes]
    _check_all(_images(len(placements), full, full), placements, _by_enumeration)


def test_the_gradient_reaches_exactly_the_pixels_that_are_shown():
    images = tf.constant(_images(1, 8, 8, 1))
    weights = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    expected = np.zeros((8, 8), np.float32)
    for row, column in itertools.product(range(5), range(7)):
        expected[_nearest(row, 5, 8), _nearest(column, 7, 8)] += weights[row + 2, column + 1]
    with tf.GradientTape() as tape:
        tape.watch(images)
        shown = shrink_and_pad(images, tf.constant([[5, 7]]), tf.constant([[2, 1]]))
        total = tf.reduce_sum(shown[..., 0] * weights)
    np.testing.assert_allclose(tape.gradient(total, images)[0, ..., 0], expected, atol=1e-7)
    assert np.count_nonzero(expected) == 35


@pytest.mark.parametrize(
    ("full", "smallest", "largest"), [(8, 7, 7), (28, 25, 27), (32, 29, 31), (64, 58, 63)]
)
def test_sizes_follow_the_ratios_of_the_paper(full, smallest, largest):
    uniforms = np.full((1000, 3), 0.5, np.float32)
    uniforms[:, 0] = np.arange(1000) / 1000
    sizes, _ = random_placements((full, full), PAPER_SHARE, tf.constant(uniforms))
    found, counts = np.unique(sizes[:, 0], return_counts=True)
    assert found.tolist() == list(range(smallest, largest + 1))
    np.testing.assert_allclose(counts, 1000 / len(found), atol=1)
    np.testing.assert_array_equal(sizes[:, 0], sizes[:, 1])


def test_every_place_is_equally_likely():
    grid = (np.arange(60, dtype=np.float32) + 0.5) / 60
    uniforms = np.array([(0.0, *pair) for pair in itertools.product(grid, grid)], np.float32)
    sizes, offsets = random_placements((32, 32), PAPER_SHARE, tf.constant(uniforms))
    assert np.unique(sizes).tolist() == [29]
    places, counts = np.unique(offsets, axis=0, return_counts=True)
    assert places.tolist() == [list(pair) for pair in itertools.product(range(4), range(4))]
    assert counts.tolist() == [225] * 16


@pytest.mark.parametrize("full_size", [(1, 1), (2, 1), (8, 9), (33, 64)])
@pytest.mark.parametrize("share", [0.01, 0.5, 299 / 330, 0.999])
def test_the_ends_of_the_uniform_interval_stay_inside(full_size, share):
    ends = (0.0, 1.0 - 2.0**-23)
    uniforms = tf.constant(list(itertools.product(ends, ends, ends)), tf.float32)
    sizes, offsets = (t.numpy() for t in random_placements(full_size, tf.constant(share), uniforms))
    assert (sizes >= 1).all()
    assert (offsets >= 0).all()
    assert (sizes + offsets <= full_size).all()
    assert ((sizes < full_size) | (np.array(full_size) == 1)).all()


SETTINGS = {"epsilon": 0.1, "step_size": 0.02, "iterations": 5}
ONE_STEP = {"epsilon": 0.1, "step_size": 0.1, "iterations": 1}

# Of 8 pixels the 7 whose centres are nearest to (i + 1/2) * 8/7, i from 0 to 6; 4 is exact there.
KEPT = [0, 1, 2, 4, 5, 6, 7]


def _samples(count=400):
    return samples(2, 0.3, 0.7, count)


@functools.cache
def _linear_attack():
    # Logits that are not confident, and one batch, so that the attack compiles once.
    classifier = wrap_classifier(Linear(2, scale=0.05), 2, DIGIT_SHAPE, 400)
    return DiverseInputsMethod(classifier, batch_size=400, **ONE_STEP)


def _moved(images, labels, **options):
    """Attacks the linear model with these options and otherwise one step of shrunk views."""
    attack = _linear_attack()
    attack.set_params(
        **{**ONE_STEP, "probability": 1.0, "momentum": 0.0, "smallest_share": 299 / 330, **options}
    )
    return attack.generate(images, labels)


def _gradients(images, labels):
    """The gradient of the loss at the plain image and at each of its four shrunk views."""
    kernel = _linear_attack().estimator.model.kernel
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
    images, labels = _samples()
    views = _which_view(_moved(images, labels), images, _gradients(images, labels))
    counts = np.bincount(views + 1, minlength=6)
    assert counts[:2].tolist() == [0, 0]
    # Four places, each with a probability of 1/4: 100 of 400, with a deviation of 8.7.
    assert (counts[2:] >= 65).all()
    assert (counts[2:] <= 135).all()


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.75])
def test_views_are_shrunk_as_often_as_asked(probability):
    images, labels = _samples()
    moved = _moved(images, labels, probability=probability)
    views = _which_view(moved, images, _gradients(images, labels))
    assert (views >= 0).all()
    deviation = math.sqrt(probability * (1 - probability) / 400)
    assert np.mean(views > 0) == pytest.approx(probability, abs=4 * deviation)


def test_every_size_is_equally_likely_among_shrunk_views():
    """A step moves exactly the pixels that were shown, as many as the square of the size."""
    images, labels = _samples()
    moved = _moved(images, labels, probability=0.5, smallest_share=0.5)
    sizes, counts = np.unique(np.count_nonzero(moved != images, axis=(1, 2, 3)), return_counts=True)
    assert sizes.tolist() == [16, 25, 36, 49, 64]
    # Shares of 1/8 with a deviation of 6.6, and of 1/2 with one of 10.
    np.testing.assert_allclose(counts, [50, 50, 50, 50, 200], atol=26)


def test_each_step_has_views_of_its_own():
    """Along a linear model a pixel that two views disagree on goes forth and back."""
    images, labels = _samples()
    gradients = np.sign(_gradients(images, labels))[1:]
    change = (_moved(images, labels, iterations=2, epsilon=0.3) - images) / 0.1
    pairs = gradients[:, None] + gradients[None]
    matches = np.abs(change - pairs).max(axis=(3, 4, 5)) < 1e-4
    assert matches.any(axis=(0, 1)).all()
    same = matches[np.arange(4), np.arange(4)].any(axis=0)
    # One in four pairs of views is twice the same one: 100 of 400, with a deviation of 8.7.
    assert 65 <= same.sum() <= 135


def test_momentum_joins_the_views_of_all_steps():
    """After two steps the velocity is the sum of two views' gradients, each of norm 1."""
    images, labels = _samples()
    gradients = _gradients(images, labels)[1:]
    units = gradients / np.abs(gradients).sum(axis=(2, 3, 4), keepdims=True)
    steps = np.sign(units)[:, None] + np.sign(units[:, None] + units[None])
    change = (_moved(images, labels, momentum=1.0, iterations=2, epsilon=0.3) - images) / 0.1
    # The slope of the loss changes a little along the way, and with it the signs of sums near 0.
    wrong = np.abs(change - steps).mean(axis=(3, 4, 5))
    assert wrong.min(axis=(0, 1)).max() < 0.1


def test_several_views_give_the_gradient_of_their_mean():
    images, labels = _samples(6)
    expected = _gradients(images, labels)[1:].mean(axis=0)
    cosines = {}
    for count in (1, 600):
        change = _moved(images, labels, norm=2, gradient_samples=count, batch_size=6) - images
        products = (change * expected).reshape(6, -1).sum(axis=1)
        cosines[count] = products / 0.1 / np.linalg.norm(expected.reshape(6, -1), axis=1)
    _linear_attack().set_params(norm=math.inf, gradient_samples=1, batch_size=400)
    assert cosines[600].min() > 0.995
    assert cosines[1].max() < 0.9


def test_unshrunk_it_is_the_momentum_iterative_method():
    classifier, (images, labels) = wrap_classifier(Wavy(2), 2, DIGIT_SHAPE, 64), _samples(40)
    expected = MomentumIterativeMethod(classifier, momentum=0.8, **SETTINGS)
    attack = DiverseInputsMethod(classifier, momentum=0.8, probability=0.0, **SETTINGS)
    np.testing.assert_array_equal(
        attack.generate(images, labels), expected.generate(images, labels)
    )


def test_the_best_iterate_is_the_most_damaging_image_and_not_view():
    images, labels = _samples(40)
    model, losses, prefixes = Wavy(2), [], []
    attack = DiverseInputsMethod(
        wrap_classifier(model, 2, DIGIT_SHAPE, 64), probability=1.0, momentum=1.0, **SETTINGS
    )
    for iterations in range(1, 6):
        attack.set_params(iterations=iterations)
        prefixes.append(attack.generate(images, labels))
        losses.append(cross_entropy(model, prefixes[-1], labels))
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
