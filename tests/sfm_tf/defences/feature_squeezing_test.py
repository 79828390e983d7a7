import keras
import numpy as np
import pytest
from scipy import ndimage
from scipy.special import softmax

from sfm_tf.defences.feature_squeezing import (
    check_scores,
    squeezing_scorer,
    threshold_at,
)
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import wrap_classifier
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.preprocessors.squeezers import DEFAULT_SQUEEZERS, default_squeezers

SHAPE = (5, 6, 1)
RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(30, 4)).astype(np.float32)
IMAGES = RANDOM.uniform(size=(11, *SHAPE)).astype(np.float32)


def _classifier(kernel=KERNEL, shape=SHAPE, **dense):
    layers = [
        keras.Input(shape),
        keras.layers.Flatten(),
        keras.layers.Dense(kernel.shape[1], use_bias=False, **dense),
    ]
    model = keras.Sequential(layers)
    model.set_weights([kernel])
    return wrap_classifier(model, kernel.shape[1], shape, 64)


def _scores(classifier, squeezers, images, batch_size):
    return squeezing_scorer(classifier, squeezers, batch_size)(images)


def _squeezers(*specs):
    return [parse_preprocessor(spec) for spec in specs]


def _probabilities(images, kernel=KERNEL):
    return softmax(images.reshape(len(images), -1).astype(np.float64) @ kernel, axis=1)


def _distances(squeezed):
    return np.abs(_probabilities(IMAGES) - _probabilities(squeezed)).sum(axis=1)


def test_the_score_is_the_largest_l1_distance_over_the_squeezers():
    coarse = np.rint(IMAGES * 3) / 3
    smooth = ndimage.median_filter(IMAGES, size=(1, 2, 2, 1), mode="reflect")
    distances = np.array([_distances(coarse), _distances(smooth)])
    # Each squeezer has the larger distance of some image.
    assert set(distances.argmax(axis=0)) == {0, 1}
    scores = _scores(_classifier(), _squeezers("bit_depth_2", "median_2"), IMAGES, 4)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, distances.max(axis=0), atol=1e-5)


def test_certain_predictions_that_differ_have_the_score_two_and_no_more():
    kernel = np.zeros((30, 4), np.float32)
    kernel[:3, :3] = np.diag([1e4, 1e4, 3e4])
    images = np.zeros((2, *SHAPE), np.float32)
    # 0.45, 0.55 and 0.4 become 0, 1 and 0: class 2 loses to class 1.
    images[:, 0, :3, 0] = [(0.45, 0.55, 0.4), (0.45, 0.55, 0.0)]
    scores = _scores(_classifier(kernel), _squeezers("bit_depth_1"), images, 2)
    np.testing.assert_array_equal(scores, [2.0, 0.0])


def test_several_sets_of_images_compile_one_graph():
    calls = []

    class Counted(keras.Model):
        def call(self, images):
            calls.append(images.shape)
            return keras.ops.reshape(images, (-1, 30))[:, :4] - 0.5

    classifier = wrap_classifier(Counted(), 4, SHAPE, 64)
    score = squeezing_scorer(classifier, _squeezers("bit_depth_2"), 4)
    counts = []
    for count in (1, 4, 11):
        assert score(IMAGES[:count]).shape == (count,)
        counts.append(len(calls))
    assert counts[0] == counts[-1]


@pytest.mark.parametrize(
    ("channels", "specs"),
    [
        (1, ["bit_depth_1", "median_2"]),
        (3, ["bit_depth_5", "median_2", "non_local_means_13_3_2"]),
    ],
)
def test_the_default_squeezers_are_those_of_the_joint_detectors(channels, specs):
    assert list(DEFAULT_SQUEEZERS[channels]) == specs
    squeezers = default_squeezers(channels, "smooth")
    assert [squeezer.spec for squeezer in squeezers] == specs
    assert {squeezer.surrogate for squeezer in squeezers} == {"smooth"}
    shape = (16, 16, channels)
    images = RANDOM.uniform(size=(3, *shape)).astype(np.float32)
    kernel = RANDOM.normal(size=(np.prod(shape), 3)).astype(np.float32)
    scores = _scores(_classifier(kernel, shape), squeezers, images, 2)
    assert scores.shape == (3,)
    assert (scores > 0).all()
    assert (scores <= 2).all()


def _smallest_threshold(scores, rate):
    """By trying every score, the only places where the rate of false positives changes."""
    return min(level for level in scores if np.mean(scores > level) <= rate)


@pytest.mark.parametrize("count", [1, 7, 20, 100])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.07, 0.29, 0.5, 0.99])
@pytest.mark.parametrize("levels", [3, 1000])
def test_the_threshold_is_the_smallest_that_keeps_the_rate(count, rate, levels):
    random = np.random.default_rng(count)
    scores = (random.integers(0, levels, count) / levels).astype(np.float32)
    threshold = threshold_at(scores, rate)
    assert threshold == _smallest_threshold(scores, rate)
    assert np.mean(scores > threshold) <= rate


def test_five_of_a_hundred_distinct_images_are_flagged():
    scores = np.random.default_rng(1).permutation(100) / 50
    assert threshold_at(scores) == 94 / 50
    # As in the authors' code: the ceil(100 * 0.95)-th of the ascending scores.
    assert threshold_at(scores) == sorted(scores)[95 - 1]
    assert np.sum(scores > threshold_at(scores)) == 5


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_no_smallest_threshold_belongs_to_is_refused(rate):
    with pytest.raises(SfmError, match=r"Invalid false_positive_rate .*; expected at least 0"):
        threshold_at(np.ones(3), rate)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], r"Scores of shape \(0,\); expected \(count,\), count >= 1"),
        ([[1.0]], r"Scores of shape \(1, 1\)"),
        ([0.0, 1.0, np.nan, np.inf], "Scores are NaN or infinite, first in image 2"),
    ],
)
def test_scores_that_are_none_are_refused(scores, message):
    with pytest.raises(SfmError, match=message):
        check_scores(np.array(scores))
    with pytest.raises(SfmError, match=message):
        threshold_at(np.array(scores))


def test_bad_input_is_refused():
    classifier, squeezers = _classifier(), _squeezers("median_2")
    with pytest.raises(SfmError, match="A detector without squeezers; expected at least one"):
        _scores(classifier, [], IMAGES, 4)
    with pytest.raises(SfmError, match="Invalid batch_size 0; expected at least 1"):
        _scores(classifier, squeezers, IMAGES, 0)
    with pytest.raises(SfmError, match=r"expected \(batch, 5, 6, 1\)"):
        _scores(classifier, squeezers, IMAGES[:, :4], 4)
    with pytest.raises(SfmError, match="The model returns probabilities; expected logits"):
        _scores(_classifier(activation="softmax"), squeezers, IMAGES, 4)
    with pytest.raises(SfmError, match="Logits are NaN or infinite for 11 of 11 images"):
        _scores(_classifier(np.full_like(KERNEL, np.nan)), squeezers, IMAGES, 4)
    with pytest.raises(SfmError, match="No squeezers for images of 2 channels; expected 1 or 3"):
        default_squeezers(2)
