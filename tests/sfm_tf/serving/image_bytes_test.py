"""Decoding and resizing are checked against Pillow and OpenCV."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sfm_tf.serving.image_bytes import (
    CLASSIFIED,
    MOST_SCANS,
    MOST_TEXTS,
    TOO_LARGE,
    UNDECODABLE,
    decode_images,
)

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


def rotated() -> bytes:
    rotation = Image.Exif()
    rotation[0x0112] = 6  # EXIF's "Orientation", a quarter turn.
    return encoded(noise(8, 8), "JPEG", exif=rotation)


FILES_OF_EVERY_KIND = {
    "RGB": encoded(noise(8, 8)),
    "grey": encoded(noise(8, 8, "L")),
    "one bit": encoded(noise(8, 8, "L").convert("1")),
    "alpha": encoded(noise(8, 8, "RGBA")),
    "grey with alpha": encoded(noise(8, 8, "LA")),
    "palette": encoded(noise(8, 8).quantize(16)),
    "palette with transparency": encoded(noise(8, 8).quantize(16), transparency=3),
    "JPEG": encoded(noise(8, 8), "JPEG", quality=90, subsampling=0),
    "JPEG with half the colours": encoded(noise(8, 8), "JPEG", subsampling=2),
    "grey JPEG": encoded(noise(8, 8, "L"), "JPEG"),
    "progressive JPEG": encoded(noise(8, 8), "JPEG", progressive=True),
    "JPEG with a rotation": rotated(),
    "trailing bytes": encoded(noise(8, 8)) + b"more",
}


def test_files_of_every_kind_are_the_pixels_that_pillow_finds():
    images, statuses = decode(list(FILES_OF_EVERY_KIND.values()))
    assert statuses == [CLASSIFIED] * len(FILES_OF_EVERY_KIND)
    for image, (kind, file) in zip(images, FILES_OF_EVERY_KIND.items(), strict=True):
        expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), np.float32)
        np.testing.assert_array_equal(image, expected / np.float32(255), err_msg=kind)


def test_16_bits_are_cut_to_8():
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    file = cv2.imencode(".png", deep)[1].tobytes()
    images, statuses = decode([file])
    assert statuses == [CLASSIFIED]
    levels = (deep[..., ::-1] >> 8).astype(np.float32)  # OpenCV's channels are blue, green, red.
    np.testing.assert_array_equal(images[0], levels / np.float32(255))


@pytest.mark.parametrize("size", [(20, 30), (5, 4), (8, 16), (300, 1), (1, 1)])
def test_images_are_resized_as_pillow_resizes_floats(size):
    original = noise(*size)
    bands = [
        band.convert("F").resize((6, 8), Image.Resampling.BILINEAR) for band in original.split()
    ]
    expected = np.stack([np.asarray(band) for band in bands], axis=-1) / 255
    images, _ = decode([encoded(original)], (8, 6, 3))
    np.testing.assert_allclose(images[0], expected, atol=2e-6)
    grey, _ = decode([encoded(original)], (8, 6, 1))
    luma = expected @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    np.testing.assert_allclose(grey[0, ..., 0], luma, atol=2e-6)


def test_grey_images_reach_a_model_of_one_channel_to_the_last_bit():
    original = noise(8, 8, "L")
    images, _ = decode([encoded(original)], (8, 8, 1))
    expected = np.asarray(original, np.float32)[..., None] / np.float32(255)
    np.testing.assert_array_equal(images[0], expected)


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
    whole = [np.frombuffer(file, np.uint8) for file in FILES_OF_EVERY_KIND.values()]
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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
