"""Keras models as classifiers of the Adversarial Robustness Toolbox (ART)."""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.errors import SfmError

CLIP_VALUES = (0.0, 1.0)
"""Range of every image."""


class BatchedTensorFlowClassifier(TensorFlowV2Classifier):
    """ART's TensorFlow classifier whose `predict` keeps to a batch size.

    Since ART 1.20.0 `TensorFlowV2Classifier.predict` ignores its `batch_size` and shows the model
    all images at once, and ART's attacks end with such a call on the whole data set.

    Args:
        model: Maps float32 images in [0, 1] to float32 logits.
        nb_classes: Number of classes.
        input_shape: Shape of one image, `(height, width, channels)`.
        batch_size: Most images the model is shown at a time.
        **options: Further arguments of `TensorFlowV2Classifier`.
    """

    def __init__(
        self,
        model: keras.Model,
        nb_classes: int,
        input_shape: tuple[int, ...],
        *,
        batch_size: int = 128,
        **options: Any,
    ) -> None:
        """Hands everything but the batch size to ART."""
        super().__init__(model=model, nb_classes=nb_classes, input_shape=input_shape, **options)
        self._batch_size = batch_size
        # TensorFlow counts compilations by the code of a function and would warn of ART's own
        # after five classifiers; a partial is counted by itself.
        self._forward_pass = tf.function(functools.partial(_forward_pass), reduce_retracing=True)

    def predict(
        self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **kwargs: Any
    ) -> np.ndarray:
        """Returns the logits of `x`, at most the smaller of both batch sizes at a time.

        Args:
            x: Images of shape `(batch, height, width, channels)`.
            batch_size: Most images shown to the model at a time.
            training_mode: Whether the model runs as in training.
            **kwargs: Ignored, as by ART.

        Returns:
            Float32 logits of shape `(batch, classes)`.
        """
        predict_chunk = super().predict
        size = min(batch_size, self._batch_size)
        starts = range(0, max(len(x), 1), size)
        chunks = [
            predict_chunk(x[start : start + size], training_mode=training_mode, **kwargs)
            for start in starts
        ]
        return np.concatenate(chunks)


def _forward_pass(model: keras.Model, images: tf.Tensor, training: bool) -> tf.Tensor:
    return model(images, training=training)


def wrap_classifier(
    model: keras.Model, class_count: int, input_shape: tuple[int, ...], batch_size: int
) -> BatchedTensorFlowClassifier:
    """Returns `model` as a classifier that both ART's and this library's attacks take.

    The loss is the cross-entropy of logits summed over the batch: a mean would divide each image's
    gradient by the batch size and push small ones below what float32 can hold.

    Args:
        model: Maps float32 images in [0, 1] to float32 logits.
        class_count: Number of classes.
        input_shape: Shape of one image, `(height, width, channels)`.
        batch_size: Most images the model is shown at a time by `predict`.

    Raises:
        SfmError: If the class count or the batch size is not positive.
    """
    for name, value in (("class_count", class_count), ("batch_size", batch_size)):
        if value < 1:
            raise SfmError(f"Invalid {name} {value!r}; expected at least 1.")
    return BatchedTensorFlowClassifier(
        model,
        class_count,
        input_shape,
        batch_size=batch_size,
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
        clip_values=CLIP_VALUES,
        preprocessing=None,
    )


def classifier_logits(classifier: TensorFlowV2Classifier, images: tf.Tensor) -> tf.Tensor:
    """Returns the logits of `images` by TensorFlow operations alone, fit for `tf.function`.

    Args:
        classifier: Any TensorFlow classifier of ART whose preprocessors are TensorFlow's too.
        images: Float32 in [0, 1], shape `(batch, height, width, channels)`.

    Returns:
        Float32 logits of shape `(batch, classes)`, after the classifier's preprocessors.
    """
    for operation in classifier.preprocessing_operations:
        if operation.apply_predict:
            images, _ = operation.forward(images, None)
    return tf.cast(classifier.model(images, training=False), tf.float32)
