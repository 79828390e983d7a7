import itertools

import cv2
import numpy as np
import pytest
from PIL import Image

from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.datasets.resizing import resize_images, resize_pixels, resize_source
from sfm_tf.records.example import ImageRecord

SHAPES = [(32, 32), (16, 48), (1, 1), (1, 7), (301, 3), (33, 65), (8, 8), (7, 9)]


def noise(*shape):
    return np.random.default_rng(shape[0]).integers(0, 256, shape, dtype=np.uint8)


def resized_by_pillow(image, size):
    """In floats, since Pillow rounds 8-bit images between the two directions."""
    bands = [
        Image.fromarray(band).convert("F").resize((size, size), Image.Resampling.BILINEAR)
        for band in np.moveaxis(image, -1, 0)
    ]
    return np.stack([np.asarray(band, float) for band in bands], axis=-1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1, 8, 13, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_levels_are_the_nearest_to_what_pillow_gives_in_floats(shape, size, channels):
    image = noise(*shape, channels)
    (resized,) = resize_images(image[None], (size, size))
    assert resized.dtype == np.uint8
    expected = resized_by_pillow(image, size)
    np.testing.assert_allclose(resized, expected, rtol=0, atol=0.5 + 1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_enlarging_is_as_opencv_interpolates(channels):
    image = noise(10, 14, channels)
    (resized,) = resize_images(image[None], (35, 35))
    expected = cv2.resize(image.astype(np.float64), (35, 35), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resized, expected.reshape(35, 35, channels), rtol=0, atol=0.5 + 1e-3)


def test_shrinking_to_half_weighs_four_pixels_per_side():
    row = noise(1, 16, 1)
    weights = np.array([1, 3, 3, 1])
    (resized,) = resize_images(np.repeat(row, 16, axis=0)[None], (8, 8))
    inner = [weights @ row[0, start : start + 4, 0] / 8 for start in range(1, 13, 2)]
    # np.rint rounds halves to even, too.
    np.testing.assert_array_equal(resized[4, 1:7, 0], np.rint(inner))


def test_images_of_the_right_size_are_kept():
    images = noise(3, 9, 9, 3)
    np.testing.assert_array_equal(resize_images(images, (9, 9)), images)


def test_no_image_depends_on_its_neighbours_or_on_the_shapes_that_are_known():
    images = noise(5, 17, 23, 3)
    together = resize_images(images, (10, 10))
    for image, resized in zip(images, together, strict=True):
        np.testing.assert_array_equal(resize_images(image[None], (10, 10))[0], resized)
        np.testing.assert_array_equal(resize_pixels(image, (10, 10)), resized)


def test_source_is_resized_in_its_order_and_otherwise_kept():
    shapes = itertools.chain([(4, 6)] * 3, SHAPES, [(300, 400)] * 5)
    records = [ImageRecord(str(n), noise(*shape, 1), n) for n, shape in enumerate(shapes)]
    source = ImageSource(("cat", "dog"), {"train": lambda: iter(records)}, 4, 6, 1)
    resized = resize_source(source, 2)
    assert (resized.height, resized.width, resized.channels) == (2, 2, 1)
    assert resized.class_names == ("cat", "dog")
    found = list(resized.splits["train"]())
    assert [(each.key, each.label) for each in found] == [(r.key, r.label) for r in records]
    for each, record in zip(found, records, strict=True):
        np.testing.assert_array_equal(each.image, resize_images(record.image[None], (2, 2))[0])


def test_one_large_image_at_a_time_is_held():
    read = []

    def large():
        for number in range(3):
            read.append(number)
            yield ImageRecord(str(number), np.zeros((600, 600, 1), np.uint8), 0)

    source = resize_source(ImageSource(("cat",), {"train": large}, 600, 600, 1), 2)
    next(source.splits["train"]())
    assert read == [0, 1]
