"""The endpoints are checked against NumPy, SciPy and Pillow, through an export and a reload."""

import io
import struct
import zlib

import cv2
import keras
import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfm_tf.datasets.decoding import MOST_SCANS, MOST_TEXTS, decode_image
from sfm_tf.datasets.ingestion import ingest
from sfm_tf.datasets.resizing import resize_images
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.records.tfrecords import load_split
from sfm_tf.serving.signatures import (
    CLASSIFIED,
    TOO_LARGE,
    UNDECODABLE,
    build_archive,
    decode_images,
    explain_images,
)


def brightness_model(channels: int) -> DefendedModel:
    """A mask that is the first channel, one bit per value, and the mean as the second of logits."""
    inputs = keras.Input((2, 4, channels))
    masker = keras.Model(inputs, inputs[..., :1])
    images = keras.Input((2, 4, channels))
    mean = keras.ops.mean(images, axis=(1, 2, 3))
    classifier = keras.Model(images, keras.ops.stack([0.5 - mean, mean], axis=-1))
    return DefendedModel(classifier, masker, parse_preprocessor("bit_depth_1"))


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_files_show_each_step(channels):
    images = np.random.default_rng(channels).random((3, 2, 4, channels)).astype(np.float32)
    images[0] = 1.0
    mask = images[..., :1]
    steps = {"mask": mask, "masked": mask * images, "defended": np.rint(mask * images)}
    answer = tf.function(lambda batch: explain_images(brightness_model(channels), batch))(images)
    np.testing.assert_array_equal(answer["mask"], steps["mask"])
    np.testing.assert_allclose(answer["masked_image"], steps["masked"], atol=1e-7)
    np.testing.assert_array_equal(answer["defended_image"], steps["defended"])
    for name, expected in steps.items():
        levels = [pixels(png).reshape(2, 4, -1) for png in answer[f"{name}_png_bytes"].numpy()]
        np.testing.assert_array_equal(levels, np.rint(expected * 255))
    means = steps["defended"].mean(axis=(1, 2, 3))
    np.testing.assert_array_equal(answer["class_id"], (means > 0.25).astype(int))


def test_files_of_values_beyond_the_range_are_black_and_white():
    images = np.array([-3.0, 7.0], np.float32).reshape(2, 1, 1, 1) * np.ones((2, 2, 4, 1))
    defended = DefendedModel(brightness_model(1).classifier)
    answer = explain_images(defended, tf.constant(images, tf.float32))
    levels = [pixels(png) for png in answer["masked_png_bytes"].numpy()]
    np.testing.assert_array_equal(levels, np.broadcast_to([[[0]], [[255]]], (2, 2, 4)))


SHAPE = (8, 8, 3)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def noise(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def header(width: int, height: int, kind: bytes = b"IHDR") -> bytes:
    return chunk(kind, struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def decode(files: list[bytes], shape: tuple[int, int, int] = SHAPE):
    function = tf.function(lambda image_bytes: decode_images(image_bytes, shape))
    images, statuses = function(tf.constant(files, tf.string))
    return images.numpy(), statuses.numpy().tolist()


DECODE_TO_8_BY_8 = tf.function(
    lambda image_bytes: decode_images(image_bytes, SHAPE),
    input_signature=[tf.TensorSpec((None,), tf.string)],
)


FILES = {
    "RGB": encoded(noise(8, 8)),
    "grey": encoded(noise(5, 9, "L")),
    "16 bits": cv2.imencode(".png", np.arange(40, dtype=np.uint16).reshape(5, 8) * 1600)[
        1
    ].tobytes(),
    "16 bits of RGB": cv2.imencode(
        ".png", np.arange(60, 360, 5).astype(np.uint16).reshape(4, 5, 3) * 99
    )[1].tobytes(),
    "one bit": encoded(noise(20, 30, "L").convert("1")),
    "alpha": encoded(noise(7, 8, "RGBA")),
    "grey with alpha": encoded(noise(8, 16, "LA")),
    "palette": encoded(noise(64, 64).quantize(16)),
    "palette with transparency": encoded(noise(3, 3).quantize(4), transparency=3),
    "one pixel": encoded(noise(1, 1)),
    "one row": encoded(noise(1, 40)),
    "one column": encoded(noise(300, 1)),
    "JPEG": encoded(noise(8, 8), "JPEG", quality=90, subsampling=0),
    "JPEG with half the colours": encoded(noise(33, 45), "JPEG", subsampling=2),
    "grey JPEG": encoded(noise(16, 9, "L"), "JPEG"),
    "JPEG for print": encoded(noise(20, 30, "CMYK"), "JPEG"),
    "progressive JPEG": encoded(noise(5, 3), "JPEG", progressive=True),
    "trailing bytes": encoded(noise(11, 12)) + b"more",
}


@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_decoded_and_resized_as_by_ingest_to_the_last_bit(channels):
    images, statuses = decode(list(FILES.values()), (8, 8, channels))
    assert statuses == [CLASSIFIED] * len(FILES)
    for image, (kind, file) in zip(images, FILES.items(), strict=True):
        (levels,) = resize_images(decode_image(file, kind)[None], (8, 8))
        if channels == 1:
            levels = np.asarray(Image.fromarray(levels).convert("L"))[..., None]
        np.testing.assert_array_equal(image, levels / np.float32(255), err_msg=kind)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    mode=st.sampled_from(["L", "RGB", "RGBA"]),
    image_format=st.sampled_from(["PNG", "JPEG"]),
)
def test_files_of_any_size_are_as_by_ingest(height, width, mode, image_format):
    image = noise(height, width, mode)
    file = encoded(image if image_format == "PNG" else image.convert("RGB"), image_format)
    served, _ = DECODE_TO_8_BY_8(tf.constant([file]))
    (levels,) = resize_images(decode_image(file, "a file")[None], (8, 8))
    np.testing.assert_array_equal(served[0], levels / np.float32(255))


def test_sides_are_scaled_independently_as_pillow_does():
    original = noise(20, 30)
    bands = [
        band.convert("F").resize((6, 8), Image.Resampling.BILINEAR) for band in original.split()
    ]
    expected = np.stack([np.asarray(band) for band in bands], axis=-1) / 255
    images, _ = decode([encoded(original)], (8, 6, 3))
    np.testing.assert_allclose(images[0], expected, atol=0.501 / 255)


def bad_files() -> dict[str, tuple[bytes, int]]:
    png, jpeg = encoded(noise(8, 8)), encoded(noise(20, 30), "JPEG")
    progressive = encoded(noise(20, 30), "JPEG", progressive=True)
    vast = encoded(noise(4097, 1))
    return {
        "nothing": (b"", UNDECODABLE),
        "text": (b"hello", UNDECODABLE),
        "GIF": (encoded(noise(8, 8), "GIF"), UNDECODABLE),
        "BMP": (encoded(noise(8, 8), "BMP"), UNDECODABLE),
        "PNG signature": (png[:8], UNDECODABLE),
        "PNG header": (png[:33], UNDECODABLE),
        "half a PNG": (png[: len(png) // 2], UNDECODABLE),
        "PNG without its end": (png[:-13], UNDECODABLE),
        "PNG with a wrong bit": (png[:60] + bytes([png[60] ^ 1]) + png[61:], UNDECODABLE),
        "PNG without pixels": (PNG_SIGNATURE + header(0, 8) + png[33:], UNDECODABLE),
        "JPEG signature": (jpeg[:3], UNDECODABLE),
        "half a JPEG": (jpeg[: len(jpeg) // 2], UNDECODABLE),
        "JPEG without its end": (jpeg[:-2], UNDECODABLE),
        "half a progressive JPEG": (progressive[: len(progressive) // 2], UNDECODABLE),
        "high PNG": (vast, TOO_LARGE),
        "wide PNG": (encoded(noise(1, 4097)), TOO_LARGE),
        "high JPEG": (encoded(noise(4097, 1), "JPEG"), TOO_LARGE),
        "wide JPEG": (encoded(noise(1, 4097), "JPEG"), TOO_LARGE),
        # Only the header can say so: there are no pixels to decode.
        "header of a bomb": (PNG_SIGNATURE + header(100_000, 100_000), TOO_LARGE),
        "header of the largest": (PNG_SIGNATURE + header(2**32 - 1, 1), TOO_LARGE),
        "header with one high byte": (PNG_SIGNATURE + header(2**24, 8), TOO_LARGE),
        # libpng reads the later header, a check of fixed places the earlier one.
        "two headers": (PNG_SIGNATURE + header(8, 8, b"prVt") + vast[8:], UNDECODABLE),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_bad_files_have_their_status_and_leave_their_neighbours_alone(channels):
    shape = (8, 8, channels)
    bad = bad_files()
    good = [encoded(noise(9, 11, seed=seed)) for seed in range(len(bad))]
    expected, _ = decode(good, shape)
    pairs = zip(good, (file for file, _ in bad.values()), strict=True)
    images, statuses = decode([file for pair in pairs for file in pair], shape)
    assert dict(zip(bad, statuses[1::2], strict=True)) == {
        name: status for name, (_, status) in bad.items()
    }
    assert statuses[::2] == [CLASSIFIED] * len(good)
    np.testing.assert_array_equal(images[::2], expected)
    np.testing.assert_array_equal(images[1::2], np.zeros((len(bad), *shape)))


@pytest.mark.parametrize("size", [(4096, 1), (1, 4096)])
def test_images_at_the_limit_are_decoded(size):
    files = [encoded(noise(*size)), encoded(noise(*size), "JPEG")]
    assert decode(files)[1] == [CLASSIFIED] * 2


@pytest.mark.parametrize(("excess", "status"), [(0, CLASSIFIED), (1, UNDECODABLE)])
def test_scans_of_a_jpeg_are_limited(excess, status):
    file = encoded(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    scans = file.count(b"\xff\xda")
    last = file[file.rindex(b"\xff\xda") : -2]
    more = file[:-2] + last * (MOST_SCANS - scans + excess) + file[-2:]
    assert decode([more])[1] == [status]


@pytest.mark.parametrize(("excess", "status"), [(0, CLASSIFIED), (1, UNDECODABLE)])
def test_compressed_texts_of_a_png_are_limited(excess, status):
    file = encoded(noise(8, 8))
    content = zlib.compress(b"text")
    texts = chunk(b"iTXt", b"key\0\1\0\0\0" + content)
    texts += chunk(b"zTXt", b"key\0\0" + content) * (MOST_TEXTS - 1 + excess)
    assert decode([file[:33] + texts + file[33:]])[1] == [status]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_batches_without_any_image_are_answered(count):
    images, statuses = decode([b"no image"] * count)
    assert images.shape == (count, *SHAPE)
    assert statuses == [UNDECODABLE] * count


def test_no_damage_raises():
    generator = np.random.default_rng(0)
    whole = [np.frombuffer(file, np.uint8) for file in FILES.values()]
    damaged = []
    for number in range(300):
        file = whole[number % len(whole)].copy()
        places = generator.integers(0, len(file), generator.integers(1, 5))
        file[places] = generator.integers(0, 256, len(places))
        damaged.append(file[: generator.integers(1, 2 * len(file))].tobytes())
    images, statuses = decode([*damaged, encoded(noise(8, 8))])
    assert set(statuses) <= {CLASSIFIED, UNDECODABLE, TOO_LARGE}
    assert statuses.count(UNDECODABLE) > 100
    assert images.min() >= 0.0
    assert images.max() <= 1.0
    assert statuses[-1] == CLASSIFIED


KERNEL = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32) * 9.0
MASK = 0.7


def tiny_defended_model() -> DefendedModel:
    """Mean colours times a fixed matrix, behind a constant mask: NumPy can do the same."""
    inputs = keras.Input((8, 8, 3))
    dense = keras.layers.Dense(4, use_bias=False)
    classifier = keras.Model(inputs, dense(keras.layers.GlobalAveragePooling2D()(inputs)))
    dense.set_weights([KERNEL])
    masked = keras.Input((8, 8, 3))
    constant = keras.layers.Conv2D(1, 1, activation="sigmoid")
    masker = keras.Model(masked, constant(masked))
    logit = np.log(MASK / (1.0 - MASK))
    constant.set_weights([np.zeros((1, 1, 3, 1)), np.array([logit])])
    return DefendedModel(classifier, masker, parse_preprocessor("bit_depth_3+median_3"))


def expected_defended_images(images: np.ndarray) -> np.ndarray:
    squeezed = np.rint(images.astype(np.float64) * MASK * 7) / 7
    return scipy.ndimage.median_filter(squeezed, size=(1, 3, 3, 1), mode="reflect")


def expected_logits(images: np.ndarray) -> np.ndarray:
    return expected_defended_images(images).mean(axis=(1, 2)) @ KERNEL


def exported(defended: DefendedModel, folder):
    build_archive(defended).write_out(str(folder), verbose=False)
    return tf.saved_model.load(str(folder))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return exported(tiny_defended_model(), tmp_path_factory.mktemp("export") / "model")


def assert_answers(answer, expected: np.ndarray) -> None:
    np.testing.assert_allclose(answer["logits"], expected, atol=1e-5)
    np.testing.assert_allclose(
        answer["probabilities"], scipy.special.softmax(expected, axis=-1), atol=1e-5
    )
    np.testing.assert_array_equal(answer["class_id"], np.argmax(expected, axis=-1))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_answers_equal_those_of_numpy_for_any_batch_size(loaded, count):
    images = np.random.default_rng(count).random((count, 8, 8, 3)).astype(np.float32)
    answer = loaded.signatures["serving_default"](images=tf.constant(images))
    assert_answers(answer, expected_logits(images))


def test_images_differ_in_their_class(loaded):
    images = np.random.default_rng(7).random((64, 1, 1, 3)) * np.ones((1, 8, 8, 1))
    answer = loaded.signatures["serving_default"](images=tf.constant(images.astype(np.float32)))
    assert len(set(answer["class_id"].numpy().tolist())) > 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_files_are_answered_as_their_pixels(loaded, count):
    pixels = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)
    files = tf.constant([encoded(Image.fromarray(image)) for image in pixels], tf.string)
    answer = loaded.signatures["predict_bytes"](image_bytes=files)
    assert_answers(answer, expected_logits(pixels / np.float32(255)))
    np.testing.assert_array_equal(answer["status"], np.zeros(count))


def test_a_model_gets_a_file_as_ingest_stored_it(tmp_path):
    """A folder of images of all sizes, ingested, beside the same files sent to the model."""
    inputs = keras.Input((8, 8, 3))
    classifier = keras.Model(inputs, keras.layers.Flatten()(inputs))  # The logits are the pixels.
    predict_bytes = exported(DefendedModel(classifier), tmp_path / "model").signatures[
        "predict_bytes"
    ]
    files = {}
    for number, file in enumerate(list(FILES.values()) * 2):
        is_png = file.startswith(PNG_SIGNATURE)
        name = f"{'cat' if number % 3 else 'dog'}/{number}.{'png' if is_png else 'jpg'}"
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
        files[f"train/{name}"] = file
    config = DataConfig(
        dataset="image_folder",
        source=str(tmp_path / "photos"),
        image_size=8,
        shards=1,
        validation_fraction=0.3,
        test_fraction=0.3,
    )
    schema = ingest(config, 0, tmp_path / "records", lambda *counts: None)
    assert sum(schema.split_sizes.values()) == len(files)
    for split in schema.split_sizes:
        images, _ = load_split(tmp_path / "records", split, schema)
        keys = stored_keys(tmp_path / "records" / f"{split}-00000-of-00001.tfrecord")
        answer = predict_bytes(image_bytes=tf.constant([files[key] for key in keys]))
        np.testing.assert_array_equal(answer["logits"], images.reshape(len(images), -1))


def stored_keys(shard) -> list[str]:
    examples = map(
        tf.train.Example.FromString, tf.data.TFRecordDataset(str(shard)).as_numpy_iterator()
    )
    return [each.features.feature["image/key"].bytes_list.value[0].decode() for each in examples]


def test_what_cannot_be_classified_scores_neutrally_beside_what_can(loaded):
    pixels = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3), np.uint8)
    vast = encoded(noise(4097, 1))
    first, last = (encoded(Image.fromarray(image)) for image in pixels)
    files = tf.constant([first, b"text", vast, last])
    answer = loaded.signatures["predict_bytes"](image_bytes=files)
    assert answer["status"].numpy().tolist() == [0, 1, 2, 0]
    assert answer["class_id"].numpy().tolist()[1:3] == [-1, -1]
    np.testing.assert_array_equal(answer["logits"][1:3], np.zeros((2, 4)))
    np.testing.assert_array_equal(answer["probabilities"][1:3], np.full((2, 4), 0.25))
    images = {name: values.numpy()[[0, 3]] for name, values in answer.items()}
    assert_answers(images, expected_logits(pixels / np.float32(255)))


def test_scores_are_neutral_even_of_a_model_that_makes_nan_of_zeros(tmp_path):
    inputs = keras.Input((4, 4, 1))
    divided = keras.ops.divide(inputs, keras.ops.sum(inputs, axis=(1, 2, 3), keepdims=True))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(divided)))
    loaded = exported(DefendedModel(model), tmp_path / "model")
    answer = loaded.signatures["predict_bytes"](image_bytes=tf.constant([b"text"]))
    assert answer["logits"].numpy().tolist() == [[0.0, 0.0]]
    assert answer["probabilities"].numpy().tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_explanations_are_the_images_between_the_parts(loaded, count):
    images = np.random.default_rng(count).random((count, 8, 8, 3)).astype(np.float32)
    answer = loaded.signatures["explain"](images=tf.constant(images))
    expected = {
        "mask": np.full((count, 8, 8, 1), MASK),
        "masked_image": MASK * images,
        "defended_image": expected_defended_images(images),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(answer[name], values, atol=1e-6)
    np.testing.assert_array_equal(answer["class_id"], expected_logits(images).argmax(axis=-1))


def test_no_image_has_no_answer_whatever_the_layers(tmp_path):
    # Convolutions that change the number of channels are what oneDNN gets wrong without images.
    inputs = keras.Input((8, 8, 1))
    features = keras.layers.BatchNormalization()(keras.layers.Conv2D(5, 3)(inputs))
    features = keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 3)(features))
    logits = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(features))
    loaded = exported(DefendedModel(keras.Model(inputs, logits)), tmp_path / "model")
    for name, signature in loaded.signatures.items():
        ((key, spec),) = signature.structured_input_signature[1].items()
        answer = signature(**{key: tf.zeros([0, *spec.shape[1:]], spec.dtype)})
        assert {len(values) for values in answer.values()} == {0}, name


IMAGES = (tf.float32, [None, 8, 8, 3])
CLASSIFICATION = {
    "logits": (tf.float32, [None, 4]),
    "probabilities": (tf.float32, [None, 4]),
    "class_id": (tf.int64, [None]),
}
EXPLANATION = {
    "mask": (tf.float32, [None, 8, 8, 1]),
    "masked_image": IMAGES,
    "defended_image": IMAGES,
    "mask_png_bytes": (tf.string, [None]),
    "masked_png_bytes": (tf.string, [None]),
    "defended_png_bytes": (tf.string, [None]),
    "class_id": (tf.int64, [None]),
}
SPECS = {
    "serving_default": ({"images": IMAGES}, CLASSIFICATION),
    "predict_bytes": (
        {"image_bytes": (tf.string, [None])},
        CLASSIFICATION | {"status": (tf.int64, [None])},
    ),
    "explain": ({"images": IMAGES}, EXPLANATION),
}


def test_names_types_and_shapes_leave_the_batch_open(loaded):
    def described(specs):
        return {name: (spec.dtype, spec.shape.as_list()) for name, spec in specs.items()}

    assert {
        name: (
            described(function.structured_input_signature[1]),
            described(function.structured_outputs),
        )
        for name, function in loaded.signatures.items()
    } == SPECS
