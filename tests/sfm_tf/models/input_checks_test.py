import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.models.input_checks import check_images, check_labels, check_logits, check_mask

SHAPE = (2, 2, 1)


def _with_nan():
    images = np.zeros((3, *SHAPE))
    images[1, 0, 0, 0] = np.nan
    return images


def test_images_become_float32_without_changing():
    images = np.random.default_rng(0).random((3, *SHAPE))
    checked = check_images(images, SHAPE)
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(checked, images.astype(np.float32))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros(SHAPE), r"shape \(2, 2, 1\); expected \(batch, 2, 2, 1\)"),
        (np.zeros((3, 2, 2, 3)), "expected \\(batch, 2, 2, 1\\)"),
        (np.zeros((0, *SHAPE)), "batch >= 1"),
        (_with_nan(), "NaN, first in image 1"),
        (np.full((1, *SHAPE), 255, np.uint8), "from 255 to 255; expected .* Divide 8-bit"),
        (np.full((1, *SHAPE), -0.1), "from -0.1 to"),
        (np.full((1, *SHAPE), np.inf), "to inf"),
    ],
    ids=["rank", "channels", "empty", "nan", "eight_bit", "negative", "infinite"],
)
def test_images_that_are_not_in_range_are_refused(images, message):
    with pytest.raises(SfmError, match=message):
        check_images(images, SHAPE)


@pytest.mark.parametrize(
    "labels",
    [[2, 0], np.array([2, 0], np.uint8), [[2], [0]], [[0, 0, 1], [1.0, 0, 0]]],
    ids=["indices", "eight_bit", "column", "one_hot"],
)
def test_labels_are_indices_or_one_hot(labels):
    checked = check_labels(labels, 2, 3)
    assert checked.dtype == np.int64
    assert checked.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], r"shape \(3,\); expected \(2,\) class indices or \(2, 3\)"),
        ([0, 3], "from 0 to 3; expected 0 to 2"),
        ([-1, 0], "from -1 to 0"),
        ([0.0, 1.0], "type float64"),
        ([[0.2, 0.8, 0.0], [1, 0, 0]], "not one-hot"),
        ([[1, 1, 0], [1, 0, 0]], "not one-hot"),
    ],
)
def test_other_labels_are_refused(labels, message):
    with pytest.raises(SfmError, match=message):
        check_labels(labels, 2, 3)


def test_mask_is_broadcast_and_defaults_to_ones():
    assert check_mask(None, (3, *SHAPE)).sum() == 12
    column = check_mask(np.array([[0], [1]], bool)[..., None], (3, *SHAPE))
    assert column.shape == (3, *SHAPE)
    assert column[:, 0].sum() == 0
    assert column[:, 1].sum() == 6


def test_mask_of_another_shape_is_refused():
    with pytest.raises(SfmError, match=r"Mask of shape \(3, 3\)"):
        check_mask(np.zeros((3, 3)), (3, *SHAPE))


@pytest.mark.parametrize(
    "logits", [[[0.0, 0.0, 0.0]], [[0.5, 0.5, 0.5]], [[2.0, -1.0, 0.0]], [[0.2, 0.3, 0.4]]]
)
def test_logits_pass(logits):
    check_logits(np.array(logits, np.float32), 3)


RANDOM = np.random.default_rng(0).uniform(0.0, 1.0, (20, 3))


@pytest.mark.parametrize(
    "logits", [0.8 * RANDOM, RANDOM - 0.01, 1.1 * RANDOM, 0.0 * RANDOM, RANDOM[:2]]
)
def test_logits_that_are_small_or_few_are_no_sigmoids(logits):
    check_logits(logits.astype(np.float32), 3)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (RANDOM, "all in .0, 1., from 0.0.* to 0.99.*, as those of a sigmoid; expected logits"),
        ([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], "probabilities; expected logits"),
        ([[0.0, np.nan, 0.0], [1.0, 2.0, 3.0]], "NaN or infinite for 1 of 2"),
        ([[0.0, np.inf, 0.0]], "NaN or infinite for 1 of 1"),
        ([[0.0, 0.0]], r"shape \(1, 2\); expected \(batch, 3\)"),
    ],
)
def test_what_are_no_logits_is_refused(logits, message):
    with pytest.raises(SfmError, match=message):
        check_logits(np.array(logits, np.float32), 3)
