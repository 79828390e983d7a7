"""What a served model takes and gives: the signatures of its SavedModel.

Everything is TensorFlow's own ops, the decoding of files too, so a server needs no other code.
"""

import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from sfm_tf.datasets import decoding
from sfm_tf.datasets.resizing import resize_pixels
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.settings import PIXEL_LEVELS

SIGNATURE_NAME = "serving_default"
"""The signature a TensorFlow Serving client gets when it names none."""

BYTES_SIGNATURE_NAME = "predict_bytes"
EXPLAIN_SIGNATURE_NAME = "explain"

NO_CLASS = -1
"""The class id of what could not be classified."""

CLASSIFIED = decoding.DECODED
UNDECODABLE = decoding.UNDECODABLE
TOO_LARGE = decoding.TOO_LARGE

LONGEST_SIDE = 4096
"""Pixels per side of the largest image that is decoded: 50 MB of them."""

PARALLEL_DECODINGS = 4
"""Images of a batch that are decoded at the same time, which bounds the memory they take."""

# ITU-R BT.601: 0.299, 0.587 and 0.114, in parts of 65536, of which they make up all.
_LUMA_WEIGHTS = (19595, 38470, 7471)
_LUMA_ONE = 1 << 16

_Shape = tuple[int, int, int]
_Decoded = tuple[tf.Tensor, tf.Tensor]  # An image or several, and the status of each.


def build_archive(defended: DefendedModel) -> keras.export.ExportArchive:
    """Prepares the export of a model under its three signatures.

    Every batch size is accepted, none included, and the answers are a batch of the same size.

    - `serving_default` takes `images`, float32 in [0, 1] of shape `(batch, height, width,
      channels)`, and gives `logits` and `probabilities`, float32 of shape `(batch, classes)`, and
      `class_id`, int64 of shape `(batch,)`.
    - `predict_bytes` takes `image_bytes`, the contents of PNG or JPEG files, and gives the same and
      `status`, int64 of shape `(batch,)`, as `decode_images` describes it. A file that is not
      classified has logits of 0, equal probabilities and the class `NO_CLASS`.
    - `explain` takes `images` and gives what `explain_images` returns.

    Args:
        defended: The model that was evaluated; its own `call` is what is exported.

    Returns:
        Archive ready to be written.
    """
    images = tf.TensorSpec(defended.classifier.input_shape, tf.float32, name="images")
    image_bytes = tf.TensorSpec((None,), tf.string, name="image_bytes")
    endpoints = {
        SIGNATURE_NAME: (
            lambda images: _answer(functools.partial(_classify, defended), images),
            images,
        ),
        BYTES_SIGNATURE_NAME: (functools.partial(_classify_bytes, defended), image_bytes),
        EXPLAIN_SIGNATURE_NAME: (
            lambda images: _answer(functools.partial(explain_images, defended), images),
            images,
        ),
    }
    archive = keras.export.ExportArchive()
    for name, (endpoint, spec) in endpoints.items():
        archive.add_endpoint(name, endpoint, input_signature=[spec])
    return archive


def _answer(
    function: Callable[[tf.Tensor], dict[str, tf.Tensor]], images: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Calls `function` with an image of zeros in the place of none, and takes its answer out.

    oneDNN's convolutions give an empty batch the channels of their input, not of their output.
    """
    count = tf.shape(images)[0]
    missing = tf.cast(count == 0, tf.int32)
    answers = function(tf.concat([images, tf.zeros([missing, *images.shape[1:]])], axis=0))
    return {name: answer[:count] for name, answer in answers.items()}


def _classify(defended: DefendedModel, images: tf.Tensor) -> dict[str, tf.Tensor]:
    logits = tf.cast(defended(images), tf.float32)
    return {
        "logits": logits,
        "probabilities": tf.nn.softmax(logits),
        "class_id": tf.argmax(logits, axis=-1, output_type=tf.int64),
    }


def _classify_bytes(defended: DefendedModel, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
    images, status = decode_images(image_bytes, defended.classifier.input_shape[1:])
    answers = _answer(functools.partial(_classify, defended), images)
    is_classified = status == CLASSIFIED
    # Chosen, not multiplied: the model's answer to an image of zeros may be a NaN.
    logits = tf.where(is_classified[:, None], answers["logits"], 0.0)
    return {
        "logits": logits,
        "probabilities": tf.nn.softmax(logits),
        "class_id": tf.where(is_classified, answers["class_id"], NO_CLASS),
        "status": status,
    }


def explain_images(defended: DefendedModel, images: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the images between the parts of a defended model, and the class they led to.

    Args:
        defended: The model.
        images: Float32 in [0, 1], shape `(batch, height, width, channels)`.

    Returns:
        `mask`, G(x), float32 of shape `(batch, height, width, 1)`; `masked_image`, G(x) * x, and
        `defended_image`, T(G(x) * x), float32 of the images' shape; the same three as 8-bit PNG
        files, `mask_png_bytes`, `masked_png_bytes` and `defended_png_bytes`, strings of shape
        `(batch,)`; and `class_id`, int64 of shape `(batch,)`. TensorFlow Serving's REST interface
        writes bytes whole only in outputs whose names end so.
    """
    mask, masked = defended.mask(images), defended.masked(images)
    defended_images = defended.defended(images)
    return {
        "mask": mask,
        "masked_image": masked,
        "defended_image": defended_images,
        "mask_png_bytes": _encode(mask),
        "masked_png_bytes": _encode(masked),
        "defended_png_bytes": _encode(defended_images),
        # Of these very images: a model that draws at random would make others.
        "class_id": tf.argmax(defended.classified(defended_images), axis=-1, output_type=tf.int64),
    }


def _encode(images: tf.Tensor) -> tf.Tensor:
    levels = tf.round(tf.clip_by_value(images, 0.0, 1.0) * PIXEL_LEVELS)
    return tf.ensure_shape(tf.io.encode_png(tf.cast(levels, tf.uint8)), (None,))


def decode_images(image_bytes: tf.Tensor, image_shape: _Shape) -> _Decoded:
    """Decodes a batch of files, each for itself.

    Each is decoded and resized by the functions that ingest used, to the same 8-bit levels. A model
    of one channel gets the luma of ITU-R BT.601 of them, rounded to levels as well.

    Args:
        image_bytes: Contents of PNG or JPEG files, string of shape `(batch,)`.
        image_shape: Height, width and channels (1 or 3) of the images to return.

    Returns:
        Images, float32 in [0, 1] of shape `(batch, *image_shape)`, zeros where there is none; and
        int64 of shape `(batch,)`: CLASSIFIED where there is one, TOO_LARGE where its header says
        that it is larger than `LONGEST_SIDE`, and UNDECODABLE where the bytes are no whole PNG or
        JPEG that `decoding.decode_pixels` takes.
    """
    count = tf.size(image_bytes, out_type=tf.int64)

    def decode(row: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return row, *_decode(encoded, image_shape)

    files = tf.data.Dataset.from_tensor_slices((tf.range(count), image_bytes))
    decoded = files.map(decode, num_parallel_calls=PARALLEL_DECODINGS, deterministic=False)
    # One row too many: a data set that left out everything could not be made a batch.
    undecoded = tf.zeros(image_shape), tf.constant(UNDECODABLE, tf.int64)
    extra = tf.data.Dataset.from_tensors((count, *undecoded))
    every = decoded.ignore_errors().concatenate(extra).batch(count + 1)
    rows, images, statuses = every.get_single_element()
    all_images = tf.scatter_nd(rows[:, None], images, [count + 1, *image_shape])
    undecodable = tf.fill([count + 1], tf.constant(UNDECODABLE, tf.int64))
    all_statuses = tf.tensor_scatter_nd_update(undecodable, rows[:, None], statuses)
    return (
        tf.ensure_shape(all_images[:-1], (None, *image_shape)),
        tf.ensure_shape(all_statuses[:-1], (None,)),
    )


def _decode(encoded: tf.Tensor, image_shape: _Shape) -> _Decoded:
    """Returns an image and its status, or raises when run, which means UNDECODABLE as well."""
    *size, channels = image_shape
    pixels, status = decoding.decode_pixels(encoded, LONGEST_SIDE)
    resized = resize_pixels(pixels, size)
    levels = resized if channels == 3 else _luma(resized)
    return tf.ensure_shape(tf.cast(levels, tf.float32) / PIXEL_LEVELS, image_shape), status


def _luma(pixels: tf.Tensor) -> tf.Tensor:
    """Converts RGB to grey as Pillow does, bit for bit; grey keeps its levels."""
    weighted = tf.cast(pixels, tf.int32) * tf.constant(_LUMA_WEIGHTS)
    total = tf.reduce_sum(weighted, axis=-1, keepdims=True) + _LUMA_ONE // 2
    return tf.cast(total // _LUMA_ONE, tf.uint8)
