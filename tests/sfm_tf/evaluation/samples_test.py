import keras
import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.samples import check_samples

SHAPE = (2, 3, 1)


def _classifier():
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(4)]
    return keras.Sequential(layers)


def _samples(seed=0):
    random = np.random.default_rng(seed)
    images = random.random((5, *SHAPE), dtype=np.float32)
    return check_samples(images, random.integers(0, 4, 5), _classifier())


def test_the_first_ones_keep_their_labels():
    samples = _samples()
    first = samples.first(2)
    assert len(first) == 2
    np.testing.assert_array_equal(first.images, samples.images[:2])
    np.testing.assert_array_equal(first.labels, samples.labels[:2])
    assert len(samples.first(9)) == len(samples) == 5


def test_the_digest_tells_images_and_labels_apart():
    samples = _samples()
    assert samples.digest() == _samples().digest()
    moved = check_samples(samples.images[::-1], samples.labels, _classifier())
    renamed = check_samples(samples.images, (samples.labels + 1) % 4, _classifier())
    assert len({samples.digest(), moved.digest(), renamed.digest(), _samples(1).digest()}) == 4


def test_a_wrapped_model_is_shown_no_more_than_the_batch_size():
    sizes = []

    class Counting(keras.layers.Layer):
        def call(self, images):
            sizes.append(images.shape[0])
            return images

    model = keras.Sequential(
        [keras.Input(SHAPE), Counting(), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    sizes.clear()
    assert _samples().wrap(model, 2).predict(_samples().images).shape == (5, 4)
    assert max(size or 0 for size in sizes) <= 2


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 3, 1)), [0, 1], r"expected \(batch, 2, 3, 1\)"),
        (np.zeros((2, *SHAPE)), [0, 4], "expected 0 to 3"),
    ],
)
def test_what_does_not_fit_the_classifier_is_refused(images, labels, message):
    with pytest.raises(SfmError, match=message):
        check_samples(images, np.array(labels), _classifier())
