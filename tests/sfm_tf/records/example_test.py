import hashlib
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sfm_tf.errors import SfmError
from sfm_tf.records.example import (
    ImageRecord,
    encode_record,
    parse_pixels,
    parse_record,
    pixel_digest,
)
from sfm_tf.records.schema import Schema


def _random_image(channels, height=5, width=7):
    generator = np.random.default_rng(channels)
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def _schema(channels, height=5, width=7):
    return Schema(height, width, channels, ("a", "b", "c"), {"train": 1})


@pytest.mark.parametrize("channels", [1, 3])
def test_stores_standard_features(channels):
    image = _random_image(channels)
    serialized = encode_record(ImageRecord("train/é.png", image, 2))
    feature = tf.train.Example.FromString(serialized).features.feature

    integers = {name: list(value.int64_list.value) for name, value in feature.items()}
    assert integers["image/height"] == [5]
    assert integers["image/width"] == [7]
    assert integers["image/channels"] == [channels]
    assert integers["image/class/label"] == [2]
    assert feature["image/format"].bytes_list.value[0] == b"png"
    assert feature["image/key"].bytes_list.value[0].decode() == "train/é.png"

    decoded = Image.open(io.BytesIO(feature["image/encoded"].bytes_list.value[0]))
    assert decoded.format == "PNG"
    assert decoded.mode == {1: "L", 3: "RGB"}[channels]
    np.testing.assert_array_equal(np.asarray(decoded).reshape(image.shape), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_parses_to_unit_range(channels):
    image = _random_image(channels)
    serialized = encode_record(ImageRecord("a", image, 1))
    pixels, label = parse_record(serialized, _schema(channels))
    assert pixels.dtype == tf.float32
    assert label.dtype == tf.int64
    assert int(label) == 1
    np.testing.assert_allclose(pixels, image / 255.0, rtol=0, atol=1e-7)


def test_parses_inside_tf_data_with_static_shape():
    image = _random_image(3)
    serialized = [encode_record(ImageRecord("a", image, 1))]
    dataset = tf.data.Dataset.from_tensor_slices(serialized)
    dataset = dataset.map(lambda text: parse_pixels(text, _schema(3)))
    assert dataset.element_spec[0].shape == (5, 7, 3)
    pixels, _ = next(dataset.as_numpy_iterator())
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, image)


def test_equal_records_have_equal_bytes():
    first = encode_record(ImageRecord("a", _random_image(3), 1))
    second = encode_record(ImageRecord("a", _random_image(3).copy(), 1))
    assert first == second
    # Features in order of name, which does not hang on the order of a hash table.
    names = [b"channels", b"class/label", b"encoded", b"format", b"height", b"key", b"width"]
    positions = [first.index(b"image/" + name) for name in names]
    assert positions == sorted(positions)
    assert first != encode_record(ImageRecord("a", _random_image(3), 2))


@pytest.mark.parametrize("schema", [_schema(3), _schema(1, height=7, width=5)])
def test_another_shape_does_not_parse(schema):
    serialized = encode_record(ImageRecord("a", _random_image(1), 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible"):
        parse_record(serialized, schema)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 2, 3), np.float32),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 4), np.uint8),
    ],
)
def test_bad_image_is_named(image):
    with pytest.raises(SfmError, match=r"Image 'cat.png' is .*; expected uint8 of shape"):
        encode_record(ImageRecord("cat.png", image, 0))


def test_digest_is_of_pixels_and_shape():
    image = _random_image(3)
    expected = hashlib.sha256(b"(5, 7, 3)" + bytes(image.ravel().tolist())).hexdigest()
    assert pixel_digest(image) == expected
    assert pixel_digest(np.asfortranarray(image)) == expected
    assert pixel_digest(image.reshape(7, 5, 3)) != expected
