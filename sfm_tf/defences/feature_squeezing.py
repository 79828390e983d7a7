"""The feature squeezing detector: it flags images whose prediction does not survive squeezing."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import classifier_logits
from sfm_tf.models.input_checks import check_images, check_logits
from sfm_tf.preprocessors.chain import Preprocessor
from sfm_tf.preprocessors.squeezers import squeezed_distances


def squeezing_scorer(
    classifier: TensorFlowV2Classifier, squeezers: Sequence[Preprocessor], batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes the detector's score, a function of images that is compiled once.

    The score is how far squeezing moves the classifier's prediction (Xu et al. 2018, section V): a
    detector flags images whose score is above its threshold.

    Args:
        classifier: TensorFlow classifier of ART that returns logits: the model that is guarded.
        squeezers: What images are compared with, at least one.
        batch_size: Images shown to the model at a time, as often as there are squeezers and once.

    Returns:
        A function of images, numbers in [0, 1] of shape `(count, height, width, channels)`, to
        float32 scores in [0, 2] of shape `(count,)`: the largest L1 distance between the softmax
        vectors of an image and of the image squeezed. It raises `SfmError` if the images are not
        as described, or the model does not return finite logits.

    Raises:
        SfmError: If there is no squeezer, or the batch size is not positive.
    """
    if not squeezers:
        raise SfmError("A detector without squeezers; expected at least one.")
    if batch_size < 1:
        raise SfmError(f"Invalid batch_size {batch_size!r}; expected at least 1.")
    # A partial, because TensorFlow counts compilations by the code of a function.
    look = tf.function(
        functools.partial(_look, classifier, tuple(squeezers)),
        input_signature=[tf.TensorSpec((None, *classifier.input_shape), tf.float32)],
        autograph=False,
    )

    def score(images: np.ndarray) -> np.ndarray:
        images = check_images(images, classifier.input_shape)
        starts = range(0, len(images), batch_size)
        looks = [look(tf.constant(images[s : s + batch_size])) for s in starts]
        logits, scores = (np.concatenate(parts) for parts in zip(*looks, strict=True))
        check_logits(logits, classifier.nb_classes)
        return scores

    return score


def _look(
    classifier: TensorFlowV2Classifier, squeezers: tuple[Preprocessor, ...], images: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns logits and scores."""
    logits_of = functools.partial(classifier_logits, classifier)
    logits = logits_of(images)
    return logits, squeezed_distances(logits_of, squeezers, images, logits)


def threshold_at(scores: np.ndarray, false_positive_rate: float = 0.05) -> float:
    """Returns the smallest threshold that flags at most a given share of clean images.

    An image is flagged if its score is above the threshold. The threshold is a score of one of the
    images: any smaller one flags this image and those that tie with it, too. It is that of the
    authors' code, the ceil(n (1 - rate))-th smallest score.

    Args:
        scores: Detector scores of clean images, shape `(count,)`.
        false_positive_rate: The share, in [0, 1).

    Raises:
        SfmError: If there are no finite scores, or the share is outside its range.
    """
    if not 0.0 <= false_positive_rate < 1.0:
        raise SfmError(
            f"Invalid false_positive_rate {false_positive_rate!r}; expected at least 0, below 1."
        )
    descending = np.sort(check_scores(scores))[::-1]
    # Compared as shares: the product of rate and count can round to below a whole number.
    shares = np.arange(1, len(descending) + 1) / len(descending)
    return float(descending[np.count_nonzero(shares <= false_positive_rate)])


def check_scores(scores: np.ndarray) -> np.ndarray:
    """Returns the scores of some images as an array of shape `(count,)`.

    Raises:
        SfmError: If they are none, of another shape or not finite.
    """
    scores = np.asarray(scores)
    if scores.ndim != 1 or len(scores) == 0:
        raise SfmError(f"Scores of shape {scores.shape}; expected (count,), count >= 1.")
    if not np.isfinite(scores).all():
        first = int(np.argmin(np.isfinite(scores)))
        raise SfmError(f"Scores are NaN or infinite, first in image {first}; expected finite ones.")
    return scores
