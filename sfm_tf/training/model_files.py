"""The files that training leaves: their names, and saving and loading the models."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from sfm_tf.artifacts import atomic_files
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.imported_model import load_keras_file
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor

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
    """Writes the parts of a defended model, the source model and `defence.json`.

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
    """Writes the models that were trained on adversarial images, and how they were trained.

    Args:
        folder: Folder to write into.
        bare: The classifier that was trained alone, from images to logits.
        defended: The one that was trained with a masker.
        class_names: Name of class `i` at position `i`.
        training: Method and settings of the adversarial training, as JSON values.
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


_REMEDY = "expected what training wrote, train again"


def load_defended_model(folder: pathlib.Path) -> DefendedModel:
    """Reads classifier, masker and pre-processing.

    Args:
        folder: Folder that `train_defence` wrote.

    Raises:
        SfmError: If a file is missing, damaged, or does not fit the others.
    """
    files = _ModelFiles.open(folder)
    return DefendedModel(
        files.classifier(CLASSIFIER_FILE), files.masker(MASKER_FILE), files.preprocessor
    )


def load_source_model(folder: pathlib.Path) -> keras.Model:
    """Reads the independent model of the black-box attacks.

    Args:
        folder: Folder that `train_defence` wrote.

    Returns:
        Model from float32 images in [0, 1] to float32 logits.

    Raises:
        SfmError: If the file is missing, damaged, or does not fit the defended model.
    """
    return _ModelFiles.open(folder).classifier(SOURCE_FILE)


def load_adversarial_models(folder: pathlib.Path) -> dict[str, DefendedModel]:
    """Reads the models that were trained on adversarial images.

    Args:
        folder: Folder that `train_on_adversarial_images` wrote.

    Returns:
        `adversarial_training`, a classifier alone, and `sfm_adversarial_training`, a classifier
        behind its masker and the experiment's pre-processing.

    Raises:
        SfmError: If a file is missing, damaged, or does not fit the others.
    """
    files = _ModelFiles.open(folder)
    return {
        ADVERSARIAL_TRAINING: DefendedModel(files.classifier(ADVERSARIAL_CLASSIFIER_FILE)),
        SFM_ADVERSARIAL_TRAINING: DefendedModel(
            files.classifier(ADVERSARIAL_SFM_CLASSIFIER_FILE),
            files.masker(ADVERSARIAL_SFM_MASKER_FILE),
            files.preprocessor,
        ),
    }


@dataclasses.dataclass(frozen=True)
class _ModelFiles:
    """A folder of models that fit its `defence.json`."""

    folder: pathlib.Path
    preprocessor: Preprocessor
    input_shape: tuple[int, int, int]
    class_count: int

    @classmethod
    def open(cls, folder: pathlib.Path) -> "_ModelFiles":
        path = folder / DEFENCE_FILE
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            preprocessor = parse_preprocessor(value["preprocessor"], value["surrogate"])
            return cls(folder, preprocessor, tuple(value["input_shape"]), len(value["class_names"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SfmError(f"Cannot read {path} ({error}); {_REMEDY}.") from error

    def classifier(self, name: str) -> keras.Model:
        return self._read(name, (self.class_count,))

    def masker(self, name: str) -> keras.Model:
        return self._read(name, (*self.input_shape[:2], 1))

    def _read(self, name: str, output_shape: tuple[int, ...]) -> keras.Model:
        model = load_keras_file(self.folder / name, _REMEDY)
        found = model.input_shape[1:], model.output_shape[1:]
        if found != (self.input_shape, output_shape):
            raise SfmError(
                f"Model {self.folder / name} maps {found[0]} to {found[1]}; expected "
                f"{self.input_shape} to {output_shape} by {DEFENCE_FILE} beside it, train again."
            )
        return model
