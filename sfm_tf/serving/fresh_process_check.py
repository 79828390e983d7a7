"""Classifies stored images with a SavedModel as a server would: without the code that made it.

Run as a script of its own: `fresh_process_check.py SAVED_MODEL IMAGES ANSWERS PASS...`.
IMAGES is a `.npy` file. Each PASS is `SIZE:COUNT`: the first COUNT images in batches of SIZE.
ANSWERS is the `.npz` file to write, with arrays `logits_I` and `class_ids_I` for pass number I.

It imports NumPy and TensorFlow only, and makes importing `sfm_tf` an error, so that a SavedModel
that needs the library cannot pass.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def classify(
    signature: Callable[[np.ndarray], Mapping[str, Any]], images: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Classifies images in batches of a given size, the last one being what is left.

    Args:
        signature: Function from images to arrays or tensors named `logits` and `class_id`.
        images: Array of shape `(count, height, width, channels)`, at least one image.
        batch_size: Images given to the signature at a time.

    Returns:
        Logits of shape `(count, classes)` and class ids of shape `(count,)`.
    """
    starts = range(0, len(images), batch_size)
    answers = [signature(images[start : start + batch_size]) for start in starts]
    logits = np.concatenate([np.asarray(answer["logits"]) for answer in answers])
    class_ids = np.concatenate([np.asarray(answer["class_id"]) for answer in answers])
    return logits, class_ids


def main(arguments: list[str]) -> None:
    """Reads the images, classifies them in each of the passes and writes the answers."""
    saved_model, images_file, answers_file, *passes = arguments
    sys.modules["sfm_tf"] = None  # type: ignore[assignment]  # Python's way to forbid an import
    import tensorflow as tf

    serving_default = tf.saved_model.load(saved_model).signatures["serving_default"]

    def signature(images: np.ndarray) -> Mapping[str, Any]:
        return serving_default(images=tf.constant(images))

    images = np.load(images_file, allow_pickle=False)
    answers = {}
    for number, size_and_count in enumerate(passes):
        size, count = map(int, size_and_count.split(":"))
        logits, class_ids = classify(signature, images[:count], size)
        answers[f"logits_{number}"] = logits
        answers[f"class_ids_{number}"] = class_ids
    np.savez(answers_file, **answers)


if __name__ == "__main__":
    main(sys.argv[1:])
