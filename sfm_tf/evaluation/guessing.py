"""Whether a classifier only guesses on the images it is given, and what that may come from."""

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from sfm_tf.evaluation.samples import Samples
from sfm_tf.evaluation.significance import wilson_interval

_EXAMPLES = 500
_BATCH = 100
_ABOVE_CHANCE = 0.1
"""Share of the way from chance to perfect that the interval has to be above."""

_OTHER_RANGES: Mapping[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "[0, 255]": (lambda images: images * 255.0, "keras.layers.Rescaling(255)"),
    "[-1, 1]": (lambda images: images * 2.0 - 1.0, "keras.layers.Rescaling(2, offset=-1)"),
}
"""How images come to be of a range that many classifiers take, and the layer that does so."""


def guessing_doubt(classifier: keras.Model, samples: Samples, class_names: Sequence[str]) -> str:
    """Returns why a classifier may not be given what it expects.

    Args:
        classifier: Maps float32 images to logits.
        samples: Images in [0, 1] and their labels, of which a few hundred are asked for.
        class_names: In the order of the labels.

    Returns:
        Sentences; empty where the accuracy without an attack is well above that of the answer that
        is always the commonest class.
    """
    shown = samples.first(_EXAMPLES)
    chance = np.bincount(shown.labels).max() / len(shown)
    right = _right_answers(classifier, shown.images, shown.labels)
    low, _ = wilson_interval(right, len(shown))
    if low > chance + _ABOVE_CHANCE * (1.0 - chance):
        return ""
    found = (
        f"The model is right on {right} of the first {len(shown)} images without an attack, and "
        f"one answer for all of them is on {chance:.0%}."
    )
    for name, (convert, layer) in _OTHER_RANGES.items():
        other = _right_answers(classifier, convert(shown.images), shown.labels)
        if wilson_interval(other, len(shown))[0] > max(chance, right / len(shown)):
            return (
                f"{found} With values in {name} in place of [0, 1] it is right on {other}: save it "
                f"again with {layer} as its first layer."
            )
    known = ", ".join(class_names[:3]) + (" and so on" if len(class_names) > 3 else "")
    return (
        f"{found} It may expect another range of values than [0, 1], channels in another order, or "
        f"other classes than {known} in this order; or it was not trained."
    )


def _right_answers(classifier: keras.Model, images: np.ndarray, labels: np.ndarray) -> int:
    answers = [
        np.argmax(classifier(images[first : first + _BATCH], training=False), axis=1)
        for first in range(0, len(images), _BATCH)
    ]
    return int(np.sum(np.concatenate(answers) == labels))
