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


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_header(width, height):
    """A PNG that claims a size and has almost no pixels: a decompression bomb's first bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def _encoded(image, image_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _smooth(mode, height=37, width=51):
    """Colours that JPEG keeps, of odd sides, so that its blocks and colours are cut."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = cv2.resize(_random((5, 6, bands)), (width, height), interpolation=cv2.INTER_CUBIC)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def _quarter_turn():
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF's "Orientation".
    return exif


_RGB = _smooth("RGB")
_FILES = {
    "rgb": _encoded(_RGB),
    "grey": _encoded(_smooth("L")),
    "one bit": _encoded(_smooth("L").convert("1")),
    "alpha": _encoded(_smooth("RGBA")),
    "grey with alpha": _encoded(_smooth("LA")),
    "palette": _encoded(_RGB.quantize(16)),
    "palette with transparency": _encoded(_RGB.quantize(16), transparency=3),
    "transparent colour": _encoded(_RGB, transparency=_RGB.getpixel((0, 0))),
    "single pixel": _encoded(_smooth("RGB", 1, 1)),
    "JPEG 4:4:4": _encoded(_RGB, "JPEG", quality=95, subsampling=0),
    "JPEG 4:2:2": _encoded(_RGB, "JPEG", quality=75, subsampling=1),
    "JPEG 4:2:0": _encoded(_RGB, "JPEG", quality=30, subsampling=2),
    "progressive JPEG": _encoded(_RGB, "JPEG", progressive=True),
    "JPEG without conversion of colours": _encoded(_RGB, "JPEG", keep_rgb=True),
    "grey JPEG": _encoded(_smooth("L"), "JPEG"),
    "JPEG with a rotation": _encoded(_RGB, "JPEG", exif=_quarter_turn()),
}


@pytest.mark.parametrize("kind", _FILES)
def test_files_are_the_rgb_pixels_that_pillow_finds(kind):
    decoded = decode_image(_FILES[kind], "a file")
    assert decoded.dtype == np.uint8
    expected = Image.open(io.BytesIO(_FILES[kind])).convert("RGB")
    np.testing.assert_array_equal(decoded, np.asarray(expected))


def test_colours_for_print_are_converted_as_by_pillow_but_for_rounding():
    file = _encoded(_smooth("CMYK"), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), int)
    np.testing.assert_allclose(decode_image(file, "a file").astype(int), expected, rtol=0, atol=1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_cut_to_the_upper_8(channels):
    deep = np.random.default_rng(0).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    levels = (deep >> 8).astype(np.uint8)
    # OpenCV's channels are blue, green, red.
    expected = np.repeat(levels, 3, axis=-1) if channels == 1 else levels[..., 2::-1]
    decoded = decode_image(cv2.imencode(".png", deep)[1].tobytes(), "a file")
    np.testing.assert_array_equal(decoded, expected)


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


_PNG = _encoded(_RGB)
_JPEG = _encoded(_RGB, "JPEG", progressive=True)
_TEXT = _chunk(b"zTXt", b"key\0\0" + zlib.compress(b"text"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        *(_encoded(_RGB, image_format) for image_format in ("GIF", "BMP", "WEBP", "TIFF")),
        _PNG[:33] + _TEXT * 17 + _PNG[33:],
        _JPEG[:-2] + _JPEG[_JPEG.rindex(b"\xff\xda") : -2] * 100 + _JPEG[-2:],
    ],
    ids=["empty", "text", "GIF", "BMP", "WebP", "TIFF", "PNG of many texts", "JPEG of many scans"],
)
@pytest.mark.parametrize("read", [decode_image, image_shape])
def test_other_files_are_named(data, read):
    with pytest.raises(SfmError, match=r"Cannot read cat\.png: expected a PNG or JPEG image; save"):
        read(data, "cat.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_cut_off_image_is_named(suffix):
    _, encoded = cv2.imencode(suffix, _random((40, 40, 3)))
    data = encoded.tobytes()
    with pytest.raises(SfmError, match="Cannot decode cat: the image is damaged"):
        decode_image(data[: len(data) // 2], "cat")


@pytest.mark.parametrize("data", [_PNG[:20], _JPEG[:20]], ids=["PNG", "JPEG"])
def test_cut_off_header_is_named(data):
    with pytest.raises(SfmError, match="Cannot decode cat: the image is damaged"):
        image_shape(data, "cat")


def test_shape_of_a_jpeg_is_in_its_header():
    assert image_shape(_JPEG[: len(_JPEG) // 2], "cat") == (37, 51)
