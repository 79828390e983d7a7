"""What the defence did to an image, to look at."""

import tensorflow as tf

from sfm_tf.choices import PIXEL_LEVELS
from sfm_tf.models.defended_model import DefendedModel


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
        "class_id": tf.argmax(defended(images), axis=-1, output_type=tf.int64),
    }


def _encode(images: tf.Tensor) -> tf.Tensor:
    levels = tf.round(tf.clip_by_value(images, 0.0, 1.0) * PIXEL_LEVELS)
    return tf.ensure_shape(tf.io.encode_png(tf.cast(levels, tf.uint8)), (None,))
