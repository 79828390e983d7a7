"""Decoding of image files, PNG or JPEG, of unknown origin: the same for ingest and serving.

`decode_pixels` is TensorFlow's own ops. Ingest runs it for every file, and the signature of a
served model that takes files contains it: a file gives training and a server the same pixels.

The result is 8-bit RGB. Grey is repeated, palettes are looked up, CMYK is converted, transparency
is dropped, 16 bits per value are cut to the upper 8, and EXIF's orientation is not applied.
"""

import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError

LONGEST_SIDE = 8192
"""Longest side, in pixels, of an image that is ingested."""

MOST_PIXELS = 64_000_000
"""Most pixels of an image that is ingested; they take 192 MB when decoded."""

MOST_SCANS = 100
"""Scans of the longest JPEG that is decoded.

Progressive images have about 10, but 33 bytes can hold one that goes over all 4096 x 4096 pixels.
"""

MOST_TEXTS = 16
"""Compressed texts in a PNG that is decoded: 8 kB can hold one that expands to 8 MB."""

DECODED = 0
UNDECODABLE = 1
TOO_LARGE = 2

# With the start of the first chunk: some decoders take dimensions from a header that comes later.
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_COMPRESSED_TEXT = "[zi]TXt"
_JPEG_SCAN = (0xFF, 0xDA)


def decode_pixels(
    encoded: tf.Tensor, longest_side: int = LONGEST_SIDE, most_pixels: int = MOST_PIXELS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes a file in a graph.

    The dimensions in its header are compared with the limits before its pixels are decoded. What
    the decoders only warn of, such as wrong values within a JPEG's scan, is decoded.

    Args:
        encoded: Contents of a PNG or JPEG file, a scalar string.
        longest_side: Pixels per side of the largest image that is decoded.
        most_pixels: Most pixels of it.

    Returns:
        The pixels, uint8 of shape `(height, width, 3)`, one black pixel where there is no image;
        and a scalar int64: DECODED; TOO_LARGE where the header says that it is larger than the
        limits; or UNDECODABLE where it is no PNG or JPEG file, or holds more than `MOST_SCANS` or
        `MOST_TEXTS` allow.

    Raises:
        tf.errors.InvalidArgumentError: When run, if the file is damaged or cut off.
    """
    _, status = _read_header(encoded, longest_side, most_pixels)
    pixels = tf.case(
        [
            (status != DECODED, lambda: tf.zeros((1, 1, 3), tf.uint8)),
            (
                _starts_with(encoded, _PNG_SIGNATURE),
                lambda: tf.io.decode_png(encoded, channels=3),
            ),
        ],
        default=lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
    )
    return tf.ensure_shape(pixels, (None, None, 3)), status


def _read_header(
    encoded: tf.Tensor, longest_side: int, most_pixels: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns height and width, int64 of shape `(2,)`, and the status."""
    sides, is_refused = tf.case(
        [
            (
                _starts_with(encoded, _PNG_SIGNATURE),
                lambda: (_png_sides(encoded), _text_count(encoded) > MOST_TEXTS),
            ),
            (
                _starts_with(encoded, _JPEG_SIGNATURE),
                lambda: (_jpeg_sides(encoded), _scan_count(encoded) > MOST_SCANS),
            ),
        ],
        # TensorFlow's decoders would write a line to the server's log about every other file.
        default=lambda: (tf.zeros((2,), tf.int64), tf.constant(True)),
    )
    # By division, since the product of what a header says may be beyond an int64.
    is_large = tf.reduce_any(sides > longest_side) | (
        sides[0] > most_pixels // tf.maximum(sides[1], 1)
    )
    refused = tf.where(is_refused, tf.constant(UNDECODABLE, tf.int64), DECODED)
    return sides, tf.where(is_large, tf.constant(TOO_LARGE, tf.int64), refused)


def _starts_with(encoded: tf.Tensor, signature: bytes) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, len(signature)) == signature


def _png_sides(encoded: tf.Tensor) -> tf.Tensor:
    # Width and height are what follows the signature, 4 bytes each, the most significant first.
    values = tf.io.decode_raw(tf.strings.substr(encoded, len(_PNG_SIGNATURE), 8), tf.uint8)
    places = tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64)
    sides = tf.reduce_sum(tf.cast(tf.reshape(values, (2, 4)), tf.int64) * places, axis=-1)
    return sides[::-1]


def _jpeg_sides(encoded: tf.Tensor) -> tf.Tensor:
    return tf.image.extract_jpeg_shape(encoded, output_type=tf.int64)[:2]


def _text_count(encoded: tf.Tensor) -> tf.Tensor:
    without = tf.strings.regex_replace(encoded, _PNG_COMPRESSED_TEXT, "")
    return (tf.strings.length(encoded) - tf.strings.length(without)) // 4


def _scan_count(encoded: tf.Tensor) -> tf.Tensor:
    values = tf.io.decode_raw(encoded, tf.uint8)
    first, second = _JPEG_SCAN
    return tf.size(tf.where((values[:-1] == first) & (values[1:] == second)))


_FILE = [tf.TensorSpec((), tf.string)]
_compiled_header = tf.function(
    lambda encoded: _read_header(encoded, LONGEST_SIDE, MOST_PIXELS), input_signature=_FILE
)
_compiled_decoder = tf.function(lambda encoded: decode_pixels(encoded), input_signature=_FILE)


def image_shape(data: bytes, name: str) -> tuple[int, int]:
    """Reads height and width from the header of an image file, without decoding it.

    Args:
        data: The file.
        name: What to call it in an error.

    Returns:
        Height and width in pixels.

    Raises:
        SfmError: If it is no PNG or JPEG image, or larger than the limits of this module.
    """
    sides, status = _run(_compiled_header, data, name)
    height, width = sides.tolist()
    if status == TOO_LARGE:
        raise SfmError(
            f"Image {name} has {width}x{height} pixels; expected at most {LONGEST_SIDE} "
            f"per side and {MOST_PIXELS:,} in all."
        )
    return height, width


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes a PNG or JPEG file as `decode_pixels` does.

    Args:
        data: The file.
        name: What to call it in an error.

    Returns:
        Array of uint8 of shape `(height, width, 3)`.

    Raises:
        SfmError: As `image_shape`, or if the image is damaged.
    """
    pixels, status = _run(_compiled_decoder, data, name)
    if status == TOO_LARGE:
        image_shape(data, name)
    return pixels


def _run(
    function: tf.types.experimental.PolymorphicFunction, data: bytes, name: str
) -> tuple[np.ndarray, int]:
    """Returns what `function` makes of a file, and its status, DECODED or TOO_LARGE."""
    try:
        with tf.device("/CPU:0"):
            result, status = function(data)
    except tf.errors.InvalidArgumentError as error:
        raise SfmError(
            f"Cannot decode {name}: the image is damaged or cut off; replace it or take it out."
        ) from error
    if status == UNDECODABLE:
        raise SfmError(
            f"Cannot read {name}: expected a PNG or JPEG image; save it as one or take it out."
        )
    return result.numpy(), int(status)
