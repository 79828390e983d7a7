"""The squeezers of feature squeezing, and how far they move a prediction (Xu et al. 2018)."""

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor

DEFAULT_SQUEEZERS: Mapping[int, tuple[str, ...]] = {
    1: ("bit_depth_1", "median_2"),
    3: ("bit_depth_5", "median_2", "non_local_means_13_3_2"),
}
"""The joint detectors for MNIST and for CIFAR-10 (Xu et al. 2018, section V), by channels."""

LARGEST_SCORE = 2.0
"""L1 distance of two distributions that have nothing in common."""


def default_squeezers(channels: int, surrogate: str = "identity") -> tuple[Preprocessor, ...]:
    """Returns the squeezers of `DEFAULT_SQUEEZERS` for images of so many channels.

    Args:
        channels: 1 for grey images, 3 for RGB.
        surrogate: Stand-in for their gradients, which scores do not need.

    Raises:
        SfmError: If there are none for such images.
    """
    if channels not in DEFAULT_SQUEEZERS:
        known = " or ".join(map(str, DEFAULT_SQUEEZERS))
        raise SfmError(f"No squeezers for images of {channels} channels; expected {known}.")
    return tuple(parse_preprocessor(spec, surrogate) for spec in DEFAULT_SQUEEZERS[channels])


def squeezed_distances(
    logits_of: Callable[[tf.Tensor], tf.Tensor],
    squeezers: Sequence[Preprocessor],
    images: tf.Tensor,
    logits: tf.Tensor,
) -> tf.Tensor:
    """Returns max_i ||p(x) - p(s_i(x))||_1 of each image (Xu et al. 2018, section V).

    TensorFlow operations alone, differentiable as far as the model and the squeezers are.

    Args:
        logits_of: The classifier: from images to logits.
        squeezers: The s_i, at least one.
        images: Float32 x in [0, 1], shape `(batch, height, width, channels)`.
        logits: What the classifier makes of x itself, shape `(batch, classes)`.

    Returns:
        Float32 in [0, 2], shape `(batch,)`.
    """
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
    distances = []
    for squeeze in squeezers:
        squeezed = tf.nn.softmax(tf.cast(logits_of(squeeze(images)), tf.float32))
        distances.append(tf.reduce_sum(tf.abs(probabilities - squeezed), axis=1))
    # Rounding takes the distance of two certain predictions past the end of the range.
    return tf.minimum(tf.reduce_max(tf.stack(distances), axis=0), LARGEST_SCORE)
