"""The files that training leaves: their names, and the writing of the models among them."""

import os
import pathlib
from collections.abc import Sequence

import keras

from sfm_tf.artifacts import atomic_files
from sfm_tf.models.defended_model import DefendedModel

CLASSIFIER_FILE = "classifier.keras"
MASKER_FILE = "masker.keras"
SOURCE_FILE = "source.keras"
DEFENCE_FILE = "defence.json"
HISTORY_FILE = "history.json"
CHECKPOINT_FOLDER = "checkpoint"
LOG_FOLDER = "logs"


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
    _save_model(folder / CLASSIFIER_FILE, defended.classifier)
    _save_model(folder / MASKER_FILE, defended.masker)
    _save_model(folder / SOURCE_FILE, source)
    defence = {
        "preprocessor": defended.preprocessor.spec,
        "surrogate": defended.preprocessor.surrogate,
        "class_names": list(class_names),
        "input_shape": list(defended.classifier.input_shape[1:]),
    }
    atomic_files.write_json(folder / DEFENCE_FILE, defence)


def _save_model(path: pathlib.Path, model: keras.Model) -> None:
    """Saves `model` under a temporary name that is synced and then renamed."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # Keras insists on the ending.
    try:
        model.save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
