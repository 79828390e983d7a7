"""Files that are no images, or images that no server should decode."""

import struct
import zlib
from collections.abc import Callable, Mapping

import cv2
import numpy as np

Make = Callable[[np.random.Generator], bytes]
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HUGE = 50_000


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(height: int, width: int, rows: bytes, *others: bytes) -> bytes:
    """Returns a grey PNG file with the given rows, whatever its header says."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), *others, _chunk(b"IDAT", zlib.compress(rows, 9))]
    return _SIGNATURE + b"".join(chunks) + _chunk(b"IEND", b"")


def _whole_png(generator: np.random.Generator) -> bytes:
    levels = generator.integers(0, 256, (32, 32, 3), np.uint8)
    return cv2.imencode(".png", levels)[1].tobytes()


def _whole_jpeg(generator: np.random.Generator) -> bytes:
    levels = generator.integers(0, 256, (32, 32, 3), np.uint8)
    return cv2.imencode(".jpg", levels)[1].tobytes()


def _cut(data: bytes, generator: np.random.Generator) -> bytes:
    return data[: int(generator.integers(1, len(data) // 2))]


def _damaged_png(generator: np.random.Generator) -> bytes:
    data = bytearray(_whole_png(generator))
    for place in generator.integers(60, len(data) - 20, 20):
        data[place] ^= 0xFF
    return bytes(data)


def _jpeg_that_says_it_is_huge(generator: np.random.Generator) -> bytes:
    data = bytearray(_whole_jpeg(generator))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


def _text_bomb(generator: np.random.Generator) -> bytes:
    del generator
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8_000_000), 9))
    return png(8, 8, bytes(9 * 8), *[text] * 40)


UNDECODABLE: Mapping[str, Make] = {
    "empty file": lambda generator: b"",
    "random bytes": lambda generator: generator.bytes(500),
    "web page": lambda generator: b"<!doctype html><title>404</title>" * 10,
    "truncated PNG": lambda generator: _cut(_whole_png(generator), generator),
    "truncated JPEG": lambda generator: _cut(_whole_jpeg(generator), generator),
    "damaged PNG": _damaged_png,
    "PNG with too few rows": lambda generator: png(64, 64, bytes(65 * 3)),
    "PNG of 0 by 0": lambda generator: png(0, 0, b""),
    "320 MB of text in a PNG": _text_bomb,
}
"""What has status 1."""

TOO_LARGE: Mapping[str, Make] = {
    "PNG that says it is huge": lambda generator: png(_HUGE, _HUGE, bytes(100)),
    "PNG of 64 MB of zeros": lambda generator: _BOMB,
    "JPEG that says it is huge": _jpeg_that_says_it_is_huge,
}
"""What has status 2."""


def _zeros_png(side: int) -> bytes:
    """Returns a grey PNG of zeros without ever holding its pixels."""
    compressor = zlib.compressobj(9)
    row = bytes(side + 1)
    data = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


_BOMB = _zeros_png(8_000)
