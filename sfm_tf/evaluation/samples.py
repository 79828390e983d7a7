"""The images that everything in an evaluation is measured on."""

import dataclasses
import hashlib

import keras
import numpy as np

from sfm_tf.models.art_classifier import BatchedTensorFlowClassifier, wrap_classifier
from sfm_tf.models.input_checks import check_images, check_labels


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images with their labels, checked; `check_samples` makes them.

    Attributes:
        images: Float32 in [0, 1], shape `(count, height, width, channels)`.
        labels: Int64 class indices of shape `(count,)`.
        class_count: Number of classes.
    """

    images: np.ndarray
    labels: np.ndarray
    class_count: int

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def first(self, count: int) -> "Samples":
        """Returns the first `count` of them, or all where there are fewer."""
        return Samples(self.images[:count], self.labels[:count], self.class_count)

    def digest(self) -> str:
        """Returns a SHA-256, in hexadecimal, of images and labels."""
        digest = hashlib.sha256(str(self.images.shape).encode("utf-8"))
        digest.update(self.images.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def wrap(self, model: keras.Model, batch_size: int) -> BatchedTensorFlowClassifier:
        """Returns a model of these images as the classifier that attacks take."""
        return wrap_classifier(model, self.class_count, self.images.shape[1:], batch_size)


def check_samples(images: np.ndarray, labels: np.ndarray, classifier: keras.Model) -> Samples:
    """Returns images and labels that `classifier` can be measured on.

    Raises:
        SfmError: If they do not fit it or each other.
    """
    images = check_images(images, classifier.input_shape[1:])
    class_count = classifier.output_shape[-1]
    return Samples(images, check_labels(labels, len(images), class_count), class_count)
