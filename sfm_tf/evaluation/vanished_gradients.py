"""How much of a gradient is lost where the attacked model computes in 16 bits."""

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.art_classifier import classifier_logits
from sfm_tf.attacks.cross_entropy import stable_cross_entropy
from sfm_tf.evaluation.samples import Samples


def vanished_share(
    exact: TensorFlowV2Classifier,
    rounded: TensorFlowV2Classifier,
    samples: Samples,
    batch_size: int,
) -> float:
    """Returns the share of gradient entries that float32 shows and 16 bits do not.

    Entries are those of the cross-entropy's gradient at the clean images, in the stable form that
    attacks climb. Where many are lost, a model can look robust because its attacker is blind.

    Args:
        exact: The model in float32.
        rounded: The same model in 16 bits.
        samples: The images that are attacked.
        batch_size: Images differentiated at a time.

    Returns:
        In [0, 1]; 0 where float32 shows none either.
    """
    seen, lost = 0, 0
    for first in range(0, len(samples), batch_size):
        rows = slice(first, first + batch_size)
        images, labels = tf.constant(samples.images[rows]), tf.constant(samples.labels[rows])
        visible = _gradient(exact, images, labels) != 0.0
        seen += np.count_nonzero(visible)
        lost += np.count_nonzero(visible & (_gradient(rounded, images, labels) == 0.0))
    return lost / seen if seen else 0.0


def _gradient(
    classifier: TensorFlowV2Classifier, images: tf.Tensor, labels: tf.Tensor
) -> np.ndarray:
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(stable_cross_entropy(classifier_logits(classifier, images), labels))
    return tape.gradient(loss, images).numpy()
