"""What a served model takes and gives."""

import keras
import tensorflow as tf

from sfm_tf.models.defended_model import DefendedModel

SIGNATURE_NAME = "serving_default"
"""The signature a TensorFlow Serving client gets when it names none."""


def build_archive(defended: DefendedModel) -> keras.export.ExportArchive:
    """Prepares the export of a model under the signature `serving_default`.

    The signature takes `images`, float32 in [0, 1] of shape `(batch, height, width, channels)`, and
    gives `logits` and `probabilities`, float32 of shape `(batch, classes)`, and `class_id`, int64
    of shape `(batch,)`. Every batch size is accepted, none included.

    Args:
        defended: The model that was evaluated; its own `call` is what is exported.

    Returns:
        Archive ready to be written.
    """

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.cast(defended(images), tf.float32)
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "class_id": tf.argmax(logits, axis=-1, output_type=tf.int64),
        }

    archive = keras.export.ExportArchive()
    images = tf.TensorSpec(defended.classifier.input_shape, tf.float32, name="images")
    archive.add_endpoint(SIGNATURE_NAME, classify, input_signature=[images])
    return archive
