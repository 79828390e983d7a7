"""What a served model takes and gives."""

import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.serving.explanation import explain_images
from sfm_tf.serving.image_bytes import CLASSIFIED, decode_images

SIGNATURE_NAME = "serving_default"
"""The signature a TensorFlow Serving client gets when it names none."""

BYTES_SIGNATURE_NAME = "predict_bytes"
EXPLAIN_SIGNATURE_NAME = "explain"

NO_CLASS = -1
"""The class id of what could not be classified."""


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
