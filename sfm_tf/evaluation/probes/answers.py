"""Which images a model is right on, in the form that probes are stored in."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sfm_tf.errors import SfmError


def answer(right: np.ndarray) -> dict[str, Any]:
    """Returns a probe's answers as JSON holds them.

    Args:
        right: Bool of shape `(count,)`: whether the model is right on each image.

    Returns:
        `examples`, `correct` and `right`, a string with a 1 or a 0 for each image.
    """
    text = "".join("1" if value else "0" for value in right)
    return {"examples": len(right), "correct": int(np.sum(right)), "right": text}


def right_images(entry: Mapping[str, Any]) -> np.ndarray:
    """Returns, bool of shape `(count,)`, what `answer` was given.

    Raises:
        SfmError: If the entry does not agree with itself.
    """
    text = entry["right"]
    right = np.array([value == "1" for value in text], bool)
    if set(text) - {"0", "1"} or (len(text), int(right.sum())) != (
        entry["examples"],
        entry["correct"],
    ):
        raise SfmError(
            f"Probe of {entry['examples']} images, {entry['correct']} right, holds {text!r}; run "
            "the evaluation again."
        )
    return right
