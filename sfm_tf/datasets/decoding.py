"""Decoding of image files, PNG or JPEG, whose origin is unknown."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from sfm_tf.errors import SfmError

LONGEST_SIDE = 8192
"""Longest side, in pixels, of an image that is accepted."""

MOST_PIXELS = 64_000_000
"""Most pixels of an image that is accepted; they take 192 MB when decoded."""

_FORMATS = ("PNG", "JPEG")
_DEEP_MODES = ("I", "F")


def _open_image(data: bytes, name: str) -> Image.Image:
    """Opens an image file without decoding it; raises `SfmError` unless it is within limits."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise SfmError(
            f"Cannot read {name}: expected a PNG or JPEG image; convert it or take it out."
        ) from error
    except (Image.DecompressionBombError, OSError, ValueError) as error:
        raise SfmError(f"Cannot read {name}: expected a PNG or JPEG image ({error}).") from error
    width, height = image.size
    if max(height, width) > LONGEST_SIDE or height * width > MOST_PIXELS:
        raise SfmError(
            f"Image {name} has {width}x{height} pixels; expected at most {LONGEST_SIDE} "
            f"per side and {MOST_PIXELS:,} in all."
        )
    return image


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
    width, height = _open_image(data, name).size
    return height, width


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes an 8-bit PNG or JPEG file as RGB, whatever its own colours; transparency is dropped.

    Args:
        data: The file.
        name: What to call it in an error.

    Returns:
        Array of uint8 of shape `(height, width, 3)`.

    Raises:
        SfmError: As `image_shape`, or if the image is damaged or has more than 8 bits per value.
    """
    image = _open_image(data, name)
    if image.mode.startswith(_DEEP_MODES):
        raise SfmError(f"Image {name} has more than 8 bits per value; convert it to 8 bits.")
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise SfmError(f"Cannot decode {name}: the image is damaged ({error}).") from error
