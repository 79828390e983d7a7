"""One image as one `tf.train.Example`.

The names of the features are those TensorFlow's own image datasets use (`image/encoded`,
`image/class/label`, ...). Pixels are stored as 8-bit PNG, which is lossless.
"""

import dataclasses
import hashlib

import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.records.schema import Schema
from sfm_tf.settings import PIXEL_LEVELS

ENCODED = "image/encoded"
LABEL = "image/class/label"


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRecord:
    """An image and its class.

    Attributes:
        key: Name of the image, the same at every ingest.
        image: Array of uint8 of shape `(height, width, channels)`, channels 1 (grey) or 3 (RGB).
        label: Index of the class.
    """

    key: str
    image: np.ndarray
    label: int


def pixel_digest(image: np.ndarray) -> str:
    """Returns the SHA-256 of an image's shape and pixels, in hexadecimal."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _bytes_feature(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _integer_feature(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def encode_record(record: ImageRecord) -> bytes:
    """Returns `record` as a serialized `tf.train.Example`, equal bytes for equal records.

    Raises:
        SfmError: If the image is not uint8 of shape `(height, width, 1 or 3)`.
    """
    image = record.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise SfmError(
            f"Image {record.key!r} is {image.dtype} of shape {image.shape}; "
            "expected uint8 of shape (height, width, 1 or 3)."
        )
    height, width, channels = image.shape
    features = {
        ENCODED: _bytes_feature(tf.io.encode_png(image).numpy()),
        "image/format": _bytes_feature(b"png"),
        "image/height": _integer_feature(height),
        "image/width": _integer_feature(width),
        "image/channels": _integer_feature(channels),
        LABEL: _integer_feature(record.label),
        "image/key": _bytes_feature(record.key.encode("utf-8")),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def parse_pixels(serialized: tf.Tensor, schema: Schema) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes one serialized record without scaling its pixels.

    Args:
        serialized: Scalar string tensor, as `encode_record` made it.
        schema: Says the shape the image must have.

    Returns:
        The image, uint8 of shape `(height, width, channels)`, and the label, a scalar int64.

    Raises:
        tf.errors.InvalidArgumentError: When run, if the record or its image cannot be decoded or
            has another shape.
    """
    specification = {
        ENCODED: tf.io.FixedLenFeature((), tf.string),
        LABEL: tf.io.FixedLenFeature((), tf.int64),
    }
    features = tf.io.parse_single_example(serialized, specification)
    image = tf.io.decode_png(features[ENCODED])
    return tf.ensure_shape(image, schema.image_shape), features[LABEL]


def parse_record(serialized: tf.Tensor, schema: Schema) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes one serialized record for a model.

    Args:
        serialized: Scalar string tensor, as `encode_record` made it.
        schema: Says the shape the image must have.

    Returns:
        The image, float32 in [0, 1] of shape `(height, width, channels)`, and the label, a scalar
        int64.

    Raises:
        tf.errors.InvalidArgumentError: When run, as `parse_pixels` does.
    """
    image, label = parse_pixels(serialized, schema)
    return tf.cast(image, tf.float32) / PIXEL_LEVELS, label
