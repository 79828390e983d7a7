import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from sfm_tf.datasets.decoding import decode_image, image_shape
from sfm_tf.errors import SfmError


def _random(shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _png(pixels, mode=None):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode or None).save(file, "PNG")
    return file.getvalue()


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_header(width, height):
    """A PNG that claims a size and has almost no pixels: a decompression bomb's first bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


_COLORS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]], np.uint8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_png(_random((5, 7, 3))), _random((5, 7, 3))),
        (_png(_random((5, 7))), np.stack([_random((5, 7))] * 3, axis=-1)),
        (_png(_random((5, 7, 4))), _random((5, 7, 4))[..., :3]),
        (_png(_COLORS, "P"), _COLORS),
    ],
    ids=["rgb", "grey", "transparent", "palette"],
)
def test_png_of_any_mode_becomes_rgb_without_loss(data, expected):
    decoded = decode_image(data, "a.png")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("flag", [cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE])
def test_jpeg_is_as_opencv_decodes_it(flag):
    smooth = cv2.resize(_random((4, 4, 3)), (32, 32), interpolation=cv2.INTER_CUBIC)
    pixels = smooth if flag == cv2.IMREAD_COLOR else smooth[..., 0]
    _, encoded = cv2.imencode(".jpg", pixels)
    expected = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]
    decoded = decode_image(encoded.tobytes(), "a.jpg")
    np.testing.assert_allclose(decoded.astype(int), expected.astype(int), rtol=0, atol=2)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (8192, 7812)])
def test_shape_reads_the_header_only_and_limits_are_inclusive(width, height):
    assert image_shape(_png_header(width, height), "a.png") == (height, width)


@pytest.mark.parametrize("read", [decode_image, image_shape])
@pytest.mark.parametrize(
    ("width", "height"), [(8193, 1), (1, 8193), (8001, 8000), (60_000, 60_000)]
)
def test_too_large_is_refused_before_decoding(read, width, height):
    with pytest.raises(SfmError, match=r"bomb\.png"):
        read(_png_header(width, height), "bomb.png")


def _file(file_format):
    file = io.BytesIO()
    Image.fromarray(_random((5, 7))).save(file, file_format)
    return file.getvalue()


@pytest.mark.parametrize("data", [b"", b"hello", _file("GIF"), _file("TIFF")])
def test_other_files_are_named(data):
    with pytest.raises(SfmError, match=r"Cannot read cat\.png: expected a PNG or JPEG image"):
        decode_image(data, "cat.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_cut_off_image_is_named(suffix):
    _, encoded = cv2.imencode(suffix, _random((40, 40, 3)))
    data = encoded.tobytes()
    with pytest.raises(SfmError, match="Cannot decode cat: the image is damaged"):
        decode_image(data[: len(data) // 2], "cat")


def test_sixteen_bits_are_refused():
    _, encoded = cv2.imencode(".png", np.full((2, 3), 40_000, np.uint16))
    with pytest.raises(SfmError, match=r"Image cat\.png has more than 8 bits"):
        decode_image(encoded.tobytes(), "cat.png")
