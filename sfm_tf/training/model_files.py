"""The files that training leaves: their names, and the writing of the models among them."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from sfm_tf.artifacts import atomic_files
from sfm_tf.models.defended_model import DefendedModel

CLASSIFIER_FILE = "classifier.keras"
MASKER_FILE = "masker.keras"
SOURCE_FILE = "source.keras"
ADVERSARIAL_CLASSIFIER_FILE = "adversarial_classifier.keras"
ADVERSARIAL_SFM_CLASSIFIER_FILE = "adversarial_sfm_classifier.keras"
ADVERSARIAL_SFM_MASKER_FILE = "adversarial_sfm_masker.keras"
DEFENCE_FILE = "defence.json"
HISTORY_FILE = "history.json"
TIMING_FILE = "timing.json"
LOSS_WEIGHTS_FILE = "loss_weights.json"
CHECKPOINT_FOLDER = "checkpoint"
LOG_FOLDER = "logs"

ADVERSARIAL_TRAINING = "adversarial_training"
SFM_ADVERSARIAL_TRAINING = "sfm_adversarial_training"
"""Names of the two models that are trained on adversarial images."""


def save_models(
    folder: pathlib.Path,
    defended: DefendedModel,
    source: keras.Model,
    class_names: Sequence[str],
) -> None:
    """Writes the parts of a defended model, the source model and what joins them.

    Args:
        folder: Folder to write into.
        defended: With a masker.
        source: The independent model, from images to logits.
        class_names: Name of class `i` at position `i`.
    """
    save_model(folder / CLASSIFIER_FILE, defended.classifier)
    save_model(folder / MASKER_FILE, defended.masker)
    save_model(folder / SOURCE_FILE, source)
    atomic_files.write_json(folder / DEFENCE_FILE, _describe(defended, class_names))


def save_adversarial_models(
    folder: pathlib.Path,
    bare: keras.Model,
    defended: DefendedModel,
    class_names: Sequence[str],
    training: Mapping[str, Any],
) -> None:
    """Writes the models that were trained on adversarial images, and how that was.

    Args:
        folder: Folder to write into.
        bare: The classifier that was trained alone, from images to logits.
        defended: The one that was trained with a masker.
        class_names: Name of class `i` at position `i`.
        training: Method, radius and what else there is to say, as JSON values.
    """
    save_model(folder / ADVERSARIAL_CLASSIFIER_FILE, bare)
    save_model(folder / ADVERSARIAL_SFM_CLASSIFIER_FILE, defended.classifier)
    save_model(folder / ADVERSARIAL_SFM_MASKER_FILE, defended.masker)
    defence = {**_describe(defended, class_names), "adversarial_training": dict(training)}
    atomic_files.write_json(folder / DEFENCE_FILE, defence)


def _describe(defended: DefendedModel, class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "preprocessor": defended.preprocessor.spec,
        "surrogate": defended.preprocessor.surrogate,
        "class_names": list(class_names),
        "input_shape": list(defended.classifier.input_shape[1:]),
    }


def save_model(path: pathlib.Path, model: keras.Model) -> None:
    """Saves `model` under a temporary name that is synced and then renamed."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # Keras insists on the ending.
    try:
        model.save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
