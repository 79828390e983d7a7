import numpy as np
import pytest
from art.attacks.evasion import HopSkipJump as ArtHopSkipJump
from art.estimators.classification import TensorFlowV2Classifier
from art.exceptions import EstimatorError

from sfm_tf.attacks.attack import NOT_FOUND
from sfm_tf.attacks.hop_skip_jump import HopSkipJump
from sfm_tf.models.art_classifier import BatchedTensorFlowClassifier, wrap_classifier
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from tests.attacked_models import linear_classifier, norms, predictions

SHAPE = (4, 4, 1)
SHORT = {"iterations": 5, "initial_evaluations": 20}


def _classifier(slopes, offsets=0.0):
    return linear_classifier(slopes, offsets, SHAPE, 128)


@pytest.fixture(scope="module")
def binary():
    """A linear model of two classes and gray images that it gives both."""
    random = np.random.default_rng(0)
    images = random.uniform(0.3, 0.7, (4, *SHAPE)).astype(np.float32)
    slopes = random.normal(size=(16, 2))
    # Without mean: the brightness that all images share makes no difference.
    classifier = _classifier((slopes - slopes.mean(axis=0)).astype(np.float32))
    labels = classifier.predict(images).argmax(axis=1)
    assert set(labels) == {0, 1}
    return classifier, images, labels


def _distances_to_boundary(classifier, images, norm):
    """The closed form: the margin over the dual norm of the slope."""
    slopes = classifier.model.get_weights()[0].astype(np.float64)
    slope = slopes[:, 0] - slopes[:, 1]
    margins = np.abs(np.diff(classifier.predict(images), axis=1))[:, 0]
    return margins / np.linalg.norm(slope, 1 if norm == np.inf else 2)


@pytest.mark.parametrize(("norm", "tolerance"), [(2, 0.03), (np.inf, 0.06)])
def test_finds_the_closest_image_beyond_the_boundary_of_a_linear_model(binary, norm, tolerance):
    classifier, images, labels = binary
    outcome = HopSkipJump(classifier, norm=norm, iterations=20).run(images, labels)
    assert outcome.found.all()
    assert (predictions(classifier.model, outcome.images) != labels).all()
    ratios = norms(outcome.images - images, norm) / _distances_to_boundary(classifier, images, norm)
    assert ratios.min() > 0.9999
    assert ratios.max() < 1.0 + tolerance


def test_comes_closer_than_art_with_the_same_search(binary):
    classifier, images, labels = binary
    np.random.seed(0)
    reference = ArtHopSkipJump(classifier, max_iter=6, verbose=False).generate(images, labels)
    outcome = HopSkipJump(classifier, iterations=6).run(images, labels)
    theirs, ours = norms(images - reference, 2), norms(images - outcome.images, 2)
    assert np.median(ours) < np.median(theirs)


def test_logits_that_hide_the_gradient_change_nothing(binary):
    """At a margin of thousands the cross-entropy has no gradient; the decisions are the same."""
    classifier, images, labels = binary
    slopes = classifier.model.get_weights()[0]
    expected = HopSkipJump(classifier, **SHORT).generate(images, labels)
    # A power of two: no rounding differs.
    attack = HopSkipJump(_classifier(slopes * 2.0**14), **SHORT)
    np.testing.assert_array_equal(attack.generate(images, labels), expected)


@pytest.mark.parametrize("norm", [2, np.inf])
def test_goes_through_a_preprocessing_that_has_no_gradient(binary, norm):
    classifier, images, labels = binary
    defended = DefendedModel(classifier.model, None, parse_preprocessor("bit_depth_3"))
    attacked = wrap_classifier(defended, 2, SHAPE, 128)
    labels = attacked.predict(images).argmax(axis=1)
    outcome = HopSkipJump(attacked, norm=norm, iterations=8).run(images, labels)
    assert outcome.found.all()
    assert (predictions(attacked.model, outcome.images) != labels).all()


def test_the_labels_count_and_not_the_predictions(binary):
    classifier, images, labels = binary
    wrong = np.where(np.arange(4) % 2, labels, 1 - labels)
    outcome = HopSkipJump(classifier, **SHORT).run(images, wrong)
    np.testing.assert_array_equal(outcome.images[::2], images[::2])
    np.testing.assert_array_equal(outcome.iterations[::2], 0)
    assert (outcome.iterations[1::2] > 0).all()
    assert (predictions(classifier.model, outcome.images) != wrong).all()


def test_an_image_without_an_adversarial_one_comes_back_unchanged_and_marked(binary):
    _, images, _ = binary
    # The second class wins only where the first pixel is dark.
    slopes = np.zeros((16, 2), np.float32)
    slopes[0, 0] = 1.0
    classifier = _classifier(slopes, np.array([0.0, 0.2]))
    mask = np.ones_like(images)
    mask[::2, 0, 0] = 0.0
    outcome = HopSkipJump(classifier, iterations=15).run(images, np.zeros(4, int), mask)
    np.testing.assert_array_equal(outcome.found, np.arange(4) % 2 == 1)
    np.testing.assert_array_equal(outcome.iterations[::2], NOT_FOUND)
    np.testing.assert_array_equal(outcome.images[::2], images[::2])
    expected = images[1::2, 0, 0, 0] - 0.2
    np.testing.assert_allclose(norms(outcome.images - images, 2)[1::2], expected, rtol=0.1)


def test_equal_images_at_other_positions_are_attacked_apart(binary):
    classifier, images, labels = binary
    twins, label = np.repeat(images[:1], 2, axis=0), np.repeat(labels[:1], 2)
    first, second = HopSkipJump(classifier, **SHORT, batch_size=2).generate(twins, label)
    assert np.abs(first - second).max() > 0


def test_numpys_global_generator_is_left_where_it_was(binary):
    classifier, images, labels = binary
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    HopSkipJump(classifier, **SHORT).generate(images[:1], labels[:1])
    np.testing.assert_array_equal(np.random.random(4), expected)


class Fickle(BatchedTensorFlowClassifier):
    """Changes its mind about the fourth image it is shown alone, and never about another."""

    shown = 0

    def predict(self, x, batch_size=128, training_mode=False, **kwargs):
        logits = np.tile(np.array([[1.0, -1.0]], np.float32), (len(x), 1))
        self.shown += len(x) == 1
        return -logits if len(x) == 1 and self.shown == 4 else logits


def test_a_search_that_would_never_end_does_and_admits_to_have_found_nothing(binary):
    classifier, images, _ = binary
    fickle = Fickle(classifier.model, 2, SHAPE, clip_values=(0.0, 1.0), preprocessing=None)
    outcome = HopSkipJump(fickle, **SHORT).run(images[:1], np.array([0]))
    # One for each of the five iterations, which all come to a halt.
    assert fickle.shown > 5 * 100
    assert outcome.iterations.tolist() == [NOT_FOUND]
    np.testing.assert_array_equal(outcome.images, images[:1])


def test_takes_the_options_and_defaults_of_art(binary):
    ours, theirs = HopSkipJump(binary[0]), ArtHopSkipJump(binary[0])
    pairs = {
        "norm": "norm",
        "iterations": "max_iter",
        "max_evaluations": "max_eval",
        "initial_evaluations": "init_eval",
        "init_size": "init_size",
    }
    for name, art_name in pairs.items():
        assert getattr(ours, name) == getattr(theirs, art_name)
    assert set(ours.attack_params) == {*pairs, "batch_size", "seed"}


def test_a_classifier_that_shows_all_queries_at_once_is_refused(binary):
    classifier = TensorFlowV2Classifier(
        binary[0].model, nb_classes=2, input_shape=SHAPE, clip_values=(0.0, 1.0)
    )
    with pytest.raises(EstimatorError, match="BatchedTensorFlowClassifier"):
        HopSkipJump(classifier)
