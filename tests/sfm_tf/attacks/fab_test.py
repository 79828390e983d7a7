import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import brentq, linprog, minimize

from sfm_tf.attacks.cw import CarliniWagner
from sfm_tf.attacks.fab import HYPERPLANE_GEOMETRIES, FastAdaptiveBoundary, Hyperplane, biased_step
from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.models.art_classifier import wrap_classifier
from tests.attacked_models import DIGIT_SHAPE, digit_model, norms, predictions
from tests.attacked_models import digits as all_digits

NORMS = [math.inf, 2]


def _plane(values, gradients):
    return Hyperplane(tf.constant(values, tf.float32), tf.constant(gradients, tf.float32))


def _way(norm, images, values, gradients):
    way = HYPERPLANE_GEOMETRIES[norm].delta(tf.constant(images), _plane(values, gradients))
    return np.asarray(way, np.float64)


def _pixels(*rows):
    """Images of one row and one channel."""
    return np.array(rows, np.float32)[:, None, :, None]


def _case(seed, shape, reach):
    """Images with black and white pixels, and values of a linear function in share of its range.

    `reach` is that share: at 1, only the corner of [0, 1] that is farthest from the image brings
    the function to zero.
    """
    random = np.random.default_rng(seed)
    images = np.clip(random.uniform(-0.5, 1.5, shape), 0.0, 1.0).astype(np.float32)
    gradients = random.normal(size=shape).astype(np.float32)
    gradients[:, 0, 0] = 0.0
    signs = random.choice([-1.0, 1.0], len(images))
    down = np.minimum(-gradients * images, gradients * (1.0 - images)).sum(axis=(1, 2, 3))
    up = np.maximum(-gradients * images, gradients * (1.0 - images)).sum(axis=(1, 2, 3))
    values = -reach * np.where(signs > 0, up, down)
    return images, values.astype(np.float32), gradients


def _smallest_linf(image, value, gradient):
    """The least t with gradient @ d = -value, -t <= d <= t and image + d in [0, 1]."""
    count = image.size
    bounds = [*zip(-image, 1.0 - image, strict=True), (0.0, None)]
    limits = np.block(
        [[np.eye(count), -np.ones((count, 1))], [-np.eye(count), -np.ones((count, 1))]]
    )
    result = linprog(
        np.eye(count + 1)[-1],
        limits,
        np.zeros(2 * count),
        np.append(gradient, 0.0)[None],
        [-value],
        bounds,
    )
    assert result.success
    return result.fun


def _smallest_l2(image, value, gradient):
    """The least norm of d with gradient @ d = -value and image + d in [0, 1]."""
    result = minimize(
        lambda change: change @ change,
        np.zeros(image.size),
        jac=lambda change: 2.0 * change,
        bounds=list(zip(-image, 1.0 - image, strict=True)),
        constraints={
            "type": "eq",
            "fun": lambda change: gradient @ change + value,
            "jac": lambda _: gradient,
        },
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert result.success
    return np.sqrt(result.fun)


ORACLES = {math.inf: _smallest_linf, 2: _smallest_l2}


def _projected(point, lead, slope, norm):
    """The point of the hyperplane nearest to `point` in [0, 1], by bisection."""
    steps = np.sign(slope) if norm == math.inf else slope

    def at(level):
        return np.clip(point - np.sign(lead) * level * steps, 0.0, 1.0)

    def rest(level):
        return lead + slope @ (at(level) - point)

    far = 1e6
    return at(far if rest(far) * lead > 0 else brentq(rest, 0.0, far, xtol=1e-15))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("reach", [0.01, 0.3, 0.7, 0.95])
def test_the_way_is_the_smallest_that_reaches_the_hyperplane(norm, reach):
    images, values, gradients = _case(0, (20, 2, 3, 2), reach)
    ways = _way(norm, images, values, gradients)
    reached = values + np.sum(gradients * ways, axis=(1, 2, 3))
    np.testing.assert_allclose(reached, 0.0, atol=1e-5)
    assert (images + ways).min() > -1e-6
    assert (images + ways).max() < 1.0 + 1e-6
    sizes = np.linalg.norm(ways.reshape(20, -1), norm, axis=1)
    flat = zip(images.reshape(20, -1), values, gradients.reshape(20, -1), strict=True)
    expected = [ORACLES[norm](*(np.asarray(part, np.float64) for part in parts)) for parts in flat]
    np.testing.assert_allclose(sizes, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("reach", [0.1, 0.9])
def test_whole_images_are_projected_too(norm, reach):
    images, values, gradients = _case(2, (4, 32, 32, 3), reach)
    ways = _way(norm, images, values, gradients)
    for image, value, gradient, way in zip(images, values, gradients, ways, strict=True):
        start, slope = image.ravel().astype(np.float64), gradient.ravel().astype(np.float64)
        expected = _projected(start, value, slope, norm) - start
        np.testing.assert_allclose(way.ravel(), expected, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_out_of_reach_every_pixel_that_counts_goes_to_its_end(norm):
    images = _pixels([0.25, 1.0, 0.5, 0.75])
    ways = _way(norm, images, [-9.0], _pixels([1.0, 2.0, 0.0, -0.5]))
    np.testing.assert_allclose(ways.ravel(), [0.75, 0.0, 0.0, -0.75], atol=1e-6)
    ways = _way(norm, images, [9.0], _pixels([1.0, 2.0, 0.0, -0.5]))
    np.testing.assert_allclose(ways.ravel(), [-0.25, -1.0, 0.0, 0.25], atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e30])
def test_the_scale_of_the_function_does_not_matter(norm, scale):
    images, values, gradients = _case(3, (10, 2, 3, 2), 0.5)
    expected = _way(norm, images, values, gradients)
    scale = np.float32(scale)
    np.testing.assert_allclose(
        _way(norm, images, scale * values, scale * gradients), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("value", "gradient"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_without_a_gradient_or_a_value_there_is_no_way_to_go(norm, value, gradient):
    images, _, gradients = _case(4, (3, 2, 3, 2), 0.5)
    ways = _way(norm, images, [value] * 3, gradient * gradients)
    np.testing.assert_array_equal(ways, np.zeros_like(ways))


@pytest.mark.parametrize("norm", NORMS)
def test_a_value_out_of_all_proportion_stays_finite(norm):
    ways = _way(norm, _pixels([0.25, 0.5]), [1e30], _pixels([1e-30, 0.0]))
    np.testing.assert_allclose(ways.ravel(), [-0.25, 0.0])


@pytest.mark.parametrize(("norm", "dual"), [(math.inf, 1), (2, 2)])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_norms_are_those_of_numpy(norm, dual, scale):
    values = (scale * np.random.default_rng(5).normal(size=(5, 4, 3, 2))).astype(np.float32)
    geometry = HYPERPLANE_GEOMETRIES[norm]
    flat = values.reshape(5, -1).astype(np.float64)
    for function, order in ((geometry.norm, norm), (geometry.dual_norm, dual)):
        expected = np.linalg.norm(flat, order, axis=1)
        np.testing.assert_allclose(function(tf.constant(values)), expected, rtol=1e-6)


def test_the_norm_infinity_has_two_names():
    assert HYPERPLANE_GEOMETRIES["inf"] is HYPERPLANE_GEOMETRIES[math.inf]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("alpha_max", "expected"),
    # The boundary is where the first pixel is 0.8, at 0.1 from the point and 0.3 from the image:
    # alpha is 1/4 or alpha_max. With eta = 2 the ways end at 0.9 and 1.1.
    [(1.0, [0.75 * 0.9 + 0.25 * 1.1, 0.75 * 0.4 + 0.25 * 0.6]), (0.1, [0.92, 0.42])],
)
def test_a_step_is_between_the_projections_of_point_and_image(norm, alpha_max, expected):
    image, point = _pixels([0.5, 0.6]), _pixels([0.7, 0.4])
    plane = _plane([-0.2], _pixels([2.0, 0.0]))
    moved = biased_step(
        HYPERPLANE_GEOMETRIES[norm], image, point, plane, tf.constant(alpha_max), tf.constant(2.0)
    )
    np.testing.assert_allclose(np.ravel(moved), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_without_a_gradient_is_a_share_of_the_way_to_the_image(norm):
    image, point = _pixels([0.5, 0.6]), _pixels([0.7, 0.4])
    plane = _plane([-0.2], _pixels([0.0, 0.0]))
    moved = biased_step(
        HYPERPLANE_GEOMETRIES[norm], image, point, plane, tf.constant(0.1), tf.constant(1.05)
    )
    np.testing.assert_allclose(np.ravel(moved), [0.68, 0.42], rtol=1e-6)


SHAPE = DIGIT_SHAPE


class Linear(keras.Model):
    """Logits linear in the pixels; counts how often Python runs its forward pass."""

    def __init__(self, kernel, offsets=0.0):
        super().__init__()
        self.kernel = np.asarray(kernel, np.float32)
        self.offsets = np.float32(offsets)
        self.calls = 0

    def call(self, images):
        self.calls += 1
        return tf.reshape(images, (-1, len(self.kernel))) @ self.kernel + self.offsets


class Steps(keras.Model):
    """A model of rounded pixels, whose gradient is zero wherever there is one."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, images):
        return self.model(tf.round(images) + 0.0 * images)


class Plateau(keras.Model):
    """Pixels above 0.5 speak for the second class; a darker image has no gradient that says so."""

    def call(self, images):
        brightness = tf.reduce_sum(tf.nn.relu(images - 0.5), axis=(1, 2, 3))
        return tf.stack([0.4 + 0.0 * brightness, brightness], axis=1)


def _attack(model, class_count, **options):
    classifier = wrap_classifier(model, class_count, SHAPE, 60)
    return FastAdaptiveBoundary(
        classifier, **{"iterations": 20, "batch_size": 60, "norm": math.inf, **options}
    )


def _shared_attack(model, class_count):
    """Returns a function from options to an attack that compiles only once for each norm."""
    attacks = {norm: _attack(model, class_count, norm=norm) for norm in NORMS}
    defaults = {"iterations": 20, "restarts": 1, "target_classes": 9, "batch_size": 60}

    def configure(norm=math.inf, **options):
        attacks[norm].set_params(**{**defaults, **options})
        return attacks[norm]

    return configure


@pytest.fixture(scope="module")
def linear():
    """A linear model of five classes, gray images and black and white ones, and the attack."""
    random = np.random.default_rng(0)
    model = Linear(random.normal(size=(64, 5)))
    gray = random.uniform(0.4, 0.6, (20, *SHAPE)).astype(np.float32)
    contrasted = np.clip(random.uniform(-1.0, 2.0, (20, *SHAPE)), 0.0, 1.0).astype(np.float32)
    return model, {"gray": gray, "contrasted": contrasted}, _shared_attack(model, 5)


@pytest.fixture(scope="module")
def digits():
    """A trained model and 60 digits, of which it knows most."""
    images, labels = all_digits()
    return digit_model(), images[:60], labels[:60]


@pytest.fixture(scope="module")
def attack_of(digits):
    """The attack on the trained model."""
    return _shared_attack(digits[0], 10)


def _distances(model, images, labels, norm):
    """Smallest norm that makes a linear model leave the label, over all other classes."""
    kernel = model.kernel.astype(np.float64)
    smallest = []
    for image, label in zip(
        images.reshape(len(images), -1).astype(np.float64), labels, strict=True
    ):
        distances = []
        for slope in (kernel[:, [label]] - np.delete(kernel, label, axis=1)).T:
            lead = image @ slope
            way = _projected(image, lead, slope, norm) - image
            is_reached = abs(lead + slope @ way) < 1e-9
            distances.append(np.linalg.norm(way, norm) if is_reached else math.inf)
        smallest.append(min(distances))
    return np.array(smallest)


@pytest.mark.parametrize("target_classes", [0, 4])
@pytest.mark.parametrize(("norm", "dual"), [(math.inf, 1), (2, 2)])
def test_finds_the_closest_boundary_of_a_linear_model(linear, norm, dual, target_classes):
    model, images = linear[0], linear[1]["gray"]
    labels = predictions(model, images)
    outcome = linear[2](norm=norm, target_classes=target_classes).run(images, labels)
    logits = np.asarray(model(images))
    slopes = model.kernel[:, labels][:, :, None] - model.kernel[:, None]
    widths = np.linalg.norm(slopes, dual, axis=0)
    leads = logits[np.arange(20), labels][:, None] - logits
    leads[np.arange(20), labels] = np.inf
    expected = np.min(leads / np.where(widths > 0, widths, 1.0), axis=1)
    ratios = norms(outcome.images - images, norm) / expected
    assert (predictions(model, outcome.images) != labels).all()
    assert ratios.min() > 0.999
    assert ratios.max() < 1.002


@pytest.mark.parametrize("target_classes", [0, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_knows_that_pixels_end_at_black_and_white(linear, norm, target_classes):
    model, images = linear[0], linear[1]["contrasted"]
    labels = predictions(model, images)
    attack = linear[2](norm=norm, target_classes=target_classes, iterations=50)
    outcome = attack.run(images, labels)
    expected = _distances(model, images, labels, norm)
    ratios = norms(outcome.images - images, norm) / expected
    assert (predictions(model, outcome.images) != labels).all()
    assert ratios.min() > 0.999
    # Untargeted it takes the hyperplane that would be nearest without the limits.
    assert ratios.max() < (1.3 if target_classes == 0 else 1.003)
    assert np.median(ratios) < 1.001


@pytest.mark.parametrize(
    ("norm", "nearest", "distance"), [(math.inf, 2, 0.3 / 3.2), (2, 1, 0.2 / 1.0)]
)
def test_untargeted_it_aims_at_the_class_nearest_in_its_norm(norm, nearest, distance):
    """One class needs 0.2 of a single pixel, the other one 0.3 of 64 pixels of weight 0.05."""
    kernel = np.zeros((64, 3))
    kernel[0, 1], kernel[:, 2] = 1.0, 0.05
    images = np.full((5, *SHAPE), 0.5, np.float32)
    model = Linear(kernel, np.array([2.0, 2.0 - 0.2 - 0.5, 2.0 - 0.3 - 1.6]))
    outcome = _attack(model, 3, norm=norm, target_classes=0, iterations=1).run(images)
    np.testing.assert_array_equal(predictions(model, outcome.images), nearest)
    np.testing.assert_allclose(norms(outcome.images - images, norm), distance, rtol=0.001)


class Bumpy(keras.Model):
    """Logits with many maxima, so that the way to the boundary depends on every step."""

    def __init__(self):
        super().__init__()
        self.kernel = np.random.default_rng(1).normal(size=(4, 3))

    def call(self, images):
        return tf.sin(3.0 * tf.reshape(images, (-1, 4))) @ self.kernel.astype(np.float32)

    def logits(self, image):
        return np.sin(3.0 * image) @ self.kernel

    def lead_and_slope(self, image, label, target):
        direction = self.kernel[:, target] - self.kernel[:, label]
        return np.sin(3.0 * image) @ direction, 3.0 * np.cos(3.0 * image) * direction


def _fab_by_the_book(model, image, label, target, norm, iterations):
    """Algorithm 1 of Croce and Hein 2020 for one image and one target, without final search."""
    point, best = image, None
    for _ in range(iterations):
        lead, slope = model.lead_and_slope(point, label, target)
        from_point = _projected(point, lead, slope, norm) - point
        lead += slope @ (image - point)
        from_image = _projected(image, lead, slope, norm) - image
        length, image_length = (np.linalg.norm(way, norm) for way in (from_point, from_image))
        alpha = min(length / (length + image_length), 0.1)
        point = (1 - alpha) * (point + 1.05 * from_point) + alpha * (image + 1.05 * from_image)
        point = np.clip(point, 0.0, 1.0)
        if model.logits(point).argmax() != label:
            if best is None or np.linalg.norm(point - image, norm) < np.linalg.norm(
                best - image, norm
            ):
                best = point
            point = image + 0.9 * (point - image)
    return best


def _searched_by_the_book(model, image, label, adversarial_image):
    """The final search, beyond the estimated boundary by a tenth of what is left."""
    ends = [image, adversarial_image]
    for _ in range(3):
        predicted = model.logits(ends[1]).argmax()
        ahead, behind = (model.logits(end)[label] - model.logits(end)[predicted] for end in ends)
        share = 0.9 * ahead / (ahead - behind) + 0.1
        between = ends[0] + share * (ends[1] - ends[0])
        ends[int(model.logits(between).argmax() != label)] = between
    return ends[1]


@pytest.mark.parametrize("norm", NORMS)
def test_takes_the_steps_of_the_paper(norm):
    model, count = Bumpy(), 40
    images = np.random.default_rng(2).uniform(0.0, 1.0, (count, 2, 2, 1)).astype(np.float32)
    logits = np.asarray(model(images))
    labels, targets = logits.argmax(axis=1), np.argsort(logits, axis=1)[:, -2]
    attack = FastAdaptiveBoundary(
        wrap_classifier(model, 3, (2, 2, 1), 64), norm=norm, iterations=12, target_classes=1
    )
    outcome = attack.run(images, labels)
    distances = []
    for image, label, target, found, moved in zip(
        images.reshape(count, 4).astype(np.float64),
        labels,
        targets,
        outcome.found,
        outcome.images.reshape(count, 4),
        strict=True,
    ):
        expected = _fab_by_the_book(model, image, label, target, norm, 12)
        assert found == (expected is not None)
        if found:
            expected = _searched_by_the_book(model, image, label, expected)
            distances.append(np.abs(moved - expected).max())
    assert len(distances) > 20
    # Next to the boundary, float32 and float64 may see an image on different sides of it.
    assert np.mean(np.array(distances) < 1e-4) >= 0.9


@pytest.mark.parametrize(("norm", "target_classes"), [(math.inf, 9), (2, 0)])
def test_images_of_a_trained_model_are_adversarial(attack_of, digits, norm, target_classes):
    model, images, labels = digits
    outcome = attack_of(norm=norm, target_classes=target_classes).run(images, labels)
    assert outcome.found.all()
    assert np.mean(predictions(model, outcome.images) != labels) > 0.95
    is_known = predictions(model, images) == labels
    assert 40 < is_known.sum() < 60
    np.testing.assert_array_equal(outcome.images[~is_known], images[~is_known])
    np.testing.assert_array_equal(outcome.iterations == 0, ~is_known)
    runs = max(target_classes, 1)
    assert outcome.iterations.max() <= 20 * runs
    assert outcome.zero_gradient_share == 0.0


def test_goes_no_further_than_pgd_with_the_smallest_radius_that_suffices(attack_of, digits):
    model, images, labels = digits
    classifier = wrap_classifier(model, 10, SHAPE, 60)
    attack = ProjectedGradientDescent(
        classifier, epsilon=0.1, step_size=0.01, iterations=20, loss="stable_cross_entropy"
    )
    smallest = np.full(60, np.inf)
    for epsilon in np.arange(0.20, 0.0, -0.02):
        attack.set_params(epsilon=epsilon, step_size=epsilon / 10)
        fooled = predictions(model, attack.generate(images, labels)) != labels
        smallest[fooled] = epsilon
    outcome = attack_of(iterations=40).run(images, labels)
    distances = norms(outcome.images - images, math.inf)
    is_known = outcome.iterations > 0
    # The radii of PGD are 0.02 apart, so its smallest is on average 0.01 too large.
    gain = smallest[is_known] - distances[is_known]
    assert np.isfinite(gain).mean() > 0.9
    assert np.median(gain) > 0.0
    assert np.mean(gain > -0.002) > 0.9


def test_goes_no_further_than_carlini_and_wagner(attack_of, digits):
    model, images, labels = digits
    reference = CarliniWagner(
        wrap_classifier(model, 10, SHAPE, 60),
        binary_search_steps=5,
        iterations=60,
        initial_constant=1.0,
        learning_rate=0.05,
    ).run(images, labels)
    outcome = attack_of(norm=2, iterations=40).run(images, labels)
    assert outcome.found.all()
    is_known = (outcome.iterations > 0) & reference.found
    assert is_known.sum() > 40
    distances, expected = (norms(o.images - images, 2)[is_known] for o in (outcome, reference))
    assert np.median(distances) <= np.median(expected)
    assert np.mean(distances <= 1.02 * expected) > 0.9


def test_more_targets_and_more_runs_come_no_further(attack_of, digits):
    _, images, labels = digits
    distances = []
    for options in ({}, {"restarts": 3}, {"target_classes": 3}, {"target_classes": 9}):
        attack = attack_of(**{"target_classes": 1, "iterations": 10, **options})
        distances.append(norms(attack.generate(images, labels) - images, math.inf))
    for fewer, more in ((0, 1), (0, 2), (2, 3)):
        # Of two iterates next to a boundary, the final search may bring the other one closer.
        assert (distances[more] <= 1.01 * distances[fewer]).all()
    assert (distances[3] < 0.9 * distances[0]).any()


@pytest.mark.parametrize(("norm", "target_classes"), [(math.inf, 9), (2, 0)])
def test_without_a_gradient_nothing_is_found(digits, norm, target_classes):
    model, images, _ = digits
    steps = Steps(model)
    labels = predictions(steps, images)
    labels[0] = (labels[0] + 1) % 10
    outcome = _attack(steps, 10, norm=norm, target_classes=target_classes, iterations=5).run(
        images, labels
    )
    assert np.isfinite(outcome.loss).all()
    np.testing.assert_array_equal(outcome.images, images)
    np.testing.assert_array_equal(outcome.iterations, [0] + 59 * [-1])
    np.testing.assert_array_equal(outcome.zero_gradient, [False] + 59 * [True])


def _differ_by(images, others):
    return np.abs(images - others).max(axis=(1, 2, 3)).min()


def test_a_restart_leaves_a_place_without_a_gradient_by_seed_and_position():
    images, labels = np.full((20, *SHAPE), 0.45, np.float32), np.zeros(20, int)
    attack = _attack(Plateau(), 2, restarts=1)
    first = attack.run(images, labels)
    assert not first.found.any()
    assert first.zero_gradient.all()
    attack.set_params(restarts=4)
    outcome = attack.run(images, labels)
    assert outcome.found.all()
    assert outcome.zero_gradient.all()
    assert outcome.iterations.min() > 20
    assert (predictions(Plateau(), outcome.images) == 1).mean() > 0.9
    part = attack.run(images[10:], labels[10:], positions=np.arange(10, 20)).images
    np.testing.assert_allclose(part, outcome.images[10:], atol=1e-4)
    assert _differ_by(outcome.images[1:], outcome.images[:-1]) > 0.01
    attack.set_params(seed=1)
    assert _differ_by(attack.generate(images, labels), outcome.images) > 0.01


def test_where_the_mask_hides_the_way_nothing_is_found(linear):
    # The second class wins only where the first pixel is dark.
    kernel = np.zeros((64, 2))
    kernel[0, 0] = 1.0
    model, images = Linear(kernel, [0.0, 0.1]), linear[1]["gray"]
    mask = np.ones_like(images)
    mask[::2, 0, 0] = 0.0
    outcome = _attack(model, 2).run(images, np.zeros(20, int), mask)
    np.testing.assert_array_equal(outcome.found, np.arange(20) % 2 == 1)
    np.testing.assert_array_equal(outcome.zero_gradient, ~outcome.found)
    np.testing.assert_array_equal(outcome.images[::2], images[::2])
    expected = images[1::2, 0, 0, 0] - 0.1
    np.testing.assert_allclose(norms(outcome.images - images, math.inf)[1::2], expected, rtol=0.002)


def test_an_image_already_adversarial_comes_back_as_it_is(linear):
    model, images = linear[0], linear[1]["gray"]
    outcome = linear[2]().run(images, (predictions(model, images) + 1) % 5)
    np.testing.assert_array_equal(outcome.images, images)
    np.testing.assert_array_equal(outcome.iterations, 0)
    assert outcome.found.all()
    assert outcome.zero_gradient_share == 0.0
