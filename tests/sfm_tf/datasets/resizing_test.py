import numpy as np
import pytest

from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.datasets.resizing import resize_image, resize_source
from sfm_tf.records.example import ImageRecord


@pytest.mark.parametrize("channels", [1, 3])
def test_shrinking_averages_blocks(channels):
    generator = np.random.default_rng(channels)
    image = generator.integers(0, 256, (12, 8, channels), dtype=np.uint8)
    # Each pixel of the result covers 3 x 2 pixels.
    means = image.reshape(4, 3, 4, 2, channels).mean(axis=(1, 3))
    resized = resize_image(image, 4)
    assert resized.dtype == np.uint8
    assert resized.shape == (4, 4, channels)
    np.testing.assert_allclose(resized, means, rtol=0, atol=0.5 + 1e-6)


def test_enlarging_by_a_whole_factor_keeps_the_mean_of_constant_images():
    image = np.full((3, 5, 1), 77, np.uint8)
    np.testing.assert_array_equal(resize_image(image, 20), np.full((20, 20, 1), 77))


def test_source_is_resized_and_otherwise_kept():
    image = np.zeros((4, 6, 1), np.uint8)

    def read():
        yield ImageRecord("a", image, 1)

    source = ImageSource(("cat", "dog"), {"train": read, "test": read}, 4, 6, 1)
    resized = resize_source(source, 2)
    assert (resized.height, resized.width, resized.channels) == (2, 2, 1)
    assert resized.class_names == ("cat", "dog")
    for split in ("train", "test"):
        (record,) = resized.splits[split]()
        assert (record.key, record.label, record.image.shape) == ("a", 1, (2, 2, 1))
